"""Reading a LLaMA as Hugging Face stores it: config.json, safetensors, and the tokeniser where it is there."""

import functools
import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.language_model import LanguageModel, Settings, Stored, in_one_line, read_json, read_params
from bayesprompt.models.llama import make_llama
from bayesprompt.models.llama_sizes import Llama

_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "query": "model.layers.{}.self_attn.q_proj.weight",
    "key": "model.layers.{}.self_attn.k_proj.weight",
    "value": "model.layers.{}.self_attn.v_proj.weight",
    "attention_output": "model.layers.{}.self_attn.o_proj.weight",
    "mlp_gate": "model.layers.{}.mlp.gate_proj.weight",
    "mlp_up": "model.layers.{}.mlp.up_proj.weight",
    "mlp_down": "model.layers.{}.mlp.down_proj.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "norm": "model.norm.weight",
    "rows": "lm_head.weight",
}
# Settings that change nothing with one value: that of a plain LLaMA.
_ONLY = {
    "attention_bias": False,
    "hidden_act": "silu",
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
}
# Settings that change no prediction: names and types, what only training or writing text reads.
_FREE = (
    r"_(model_)?name_or_path|architectures|(torch_)?dtype|transformers(_version|\.js_config)|is_llama_config|_attn_implementation.*"
    r"|\w+_token_ids?|initializer_range|attention_dropout|pretraining_tp|use_cache|output_\w+|return_dict|torchscript"
    r"|id2label|label2id|problem_type|chunk_size_feed_forward|unsloth_\w+"
)
_TYPES = ("F32", "F16", "BF16")


def llama_from_safetensors(folder: str | Path) -> LanguageModel:
    """Read a model from a folder: config.json, safetensors (one file, or an index of several), perhaps tokenizer.json.

    Its tokeniser is None where there is none or the package tokenizers is not installed. Raises UserError where a file
    is missing, and RefusedFileError (a UserError) for a damaged one, another architecture, biases, a scaling of the
    rotation that is neither linear nor Llama 3's, and tensors and settings that this reader does not know.
    """
    folder = Path(folder)
    settings = Settings(folder / "config.json", read_json(folder / "config.json"))
    if (kind := settings.take("model_type")) != "llama":
        raise settings.refusal("model_type", kind, "'llama'")
    sizes = _sizes(settings)
    settings.finish(_ONLY, _FREE)
    params = read_params(folder, sizes, _NAMES, _tensors(folder))
    return LanguageModel(make_llama(sizes), jax.device_put(params), _tokenizer(folder, sizes.num_tokens), folder)


def _sizes(settings: Settings) -> Llama:
    """Take the sizes, with the rotation's base and scaling, out of the settings."""
    given = settings.take("rope_scaling") or settings.take("rope_parameters") or {}
    if not isinstance(given, dict):
        raise settings.refusal("rope_scaling", given, "an object")
    rope, whole, heads = Settings(settings.path, given), settings.whole, settings.whole("num_attention_heads")
    sizes = settings.make(
        Llama,
        num_tokens=whole("vocab_size"),
        embed_dim=whole("hidden_size"),
        num_heads=heads,
        num_kv_heads=whole("num_key_value_heads", heads),
        num_layers=whole("num_hidden_layers"),
        mlp_dim=whole("intermediate_size"),
        context=whole("max_position_embeddings"),
        rope_base=rope.number("rope_theta", settings.number("rope_theta", 10_000.0)),
        norm_epsilon=settings.number("rms_norm_eps"),
        tied=bool(whole("tie_word_embeddings", False)),
        head_size=whole("head_dim", 0) or None,
    )
    kind, half, factors = rope.take("rope_type", rope.take("type", "default")), sizes.head_dim // 2, np.zeros(0)
    if kind == "linear":
        factors = np.full(half, rope.number("factor"))
    elif kind == "llama3":
        factors = _llama3_factors(rope, sizes.context, sizes.rope_base ** (-np.arange(half) / half))
    elif kind != "default":
        raise rope.refusal("rope_type", kind, "'default', 'linear' or 'llama3'")
    rope.finish({"partial_rotary_factor": 1.0}, "")
    return settings.make(replace, sizes, rope_factors=tuple(factors.tolist()))


def _llama3_factors(rope: Settings, context: int, angles: np.ndarray) -> np.ndarray:
    """Return the factors by which Llama 3 divides its angles a position: slow ones by `factor`, fast ones by 1.

    Slow is what turns fewer than `low_freq_factor` times over the context of pretraining, fast what turns more than
    `high_freq_factor` times; between them, the angles themselves are interpolated.
    """
    factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = rope.number("original_max_position_embeddings", context) * angles / (2 * math.pi)
    if not (0 < factor < math.inf and low < high):
        raise rope.refusal("low_freq_factor", low, f"below high_freq_factor = {high}, and factor > 0 and finite")
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (fast + (1 - fast) / factor)


def _tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors of all files, still on disk."""
    files, found = sorted(folder.glob("*.safetensors")), {}
    if (index := folder / "model.safetensors.index.json").is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise RefusedFileError(f"{index} = without a weight_map: must have one")
        files = [folder / Path(name).name for name in sorted(set(named.values()))]  # in no other folder
    elif len(files) != 1:
        raise UserError(f"folder = {folder}: must have one file *.safetensors, or {index.name}")
    for file in files:
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}
                kinds = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
        except Exception as error:  # whatever the package trips over
            raise RefusedFileError(f"{file} = no whole safetensors file: must be one: {in_one_line(error)}") from None
        for name, (kind, shape) in kinds.items():
            if kind not in _TYPES or name in found:
                raise RefusedFileError(f"{file} = {name} of type {kind}: must be there once, of {', '.join(_TYPES)}")
            if not name.endswith(".rotary_emb.inv_freq"):  # stored by old versions; the settings say it
                found[name] = Stored(shape, functools.partial(_read, file, name))
    return found


def _read(file: Path, name: str) -> np.ndarray:
    with safetensors.safe_open(file, framework="np") as opened:
        return opened.get_tensor(name).astype(np.float32, copy=False)


def _tokenizer(folder: Path, num_tokens: int) -> Any:
    """Return the tokeniser of the folder, or None."""
    path = folder / "tokenizer.json"
    if not path.is_file() or importlib.util.find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # whatever the package trips over
        raise RefusedFileError(f"{path} = no tokeniser: must be one: {in_one_line(error)}") from None
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= num_tokens:
        raise RefusedFileError(f"{path} = token {last}: must be below {num_tokens}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
