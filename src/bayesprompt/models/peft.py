"""Soft prompts and prefixes as adapters of Hugging Face PEFT: what is tuned here is read there, and back."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.language_model import LanguageModel, Settings, in_one_line, read_json
from bayesprompt.models.prefixes import Prefix, check_prefix
from bayesprompt.models.trace import inspect

_CONFIG, _WEIGHTS, _ROWS = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
_ONLY = {"num_transformer_submodules": 1, "prefix_projection": False, "task_type": "CAUSAL_LM"}
# Settings that change no prediction of an adapter that is read: names, how it was initialised, how it was trained.
_FREE = (
    r"auto_mapping|base_model_name_or_path|inference_mode|revision|peft_version|modules_to_save|encoder_\w+|tokenizer_\w+"
    r"|prompt_tuning_init(_\w+)?|num_attention_heads|num_layers|token_dim|exclude_modules|init_weights"
)


def export_peft(folder: str | Path, model: LanguageModel, prefix: Prefix, base: str = "") -> None:
    """Write a prefix as an adapter that PEFT loads: its rows as prompt tuning, those for every layer as prefix tuning.

    A prompt of token rows (HardPT, SimplexPT, RealPT) is written as the embeddings that it has in this model, and rows
    for every layer as the keys and values that they have in it. `base` names the model for PEFT. Raises UserError for
    no prefix and for another network's.
    """
    sizes = model.sizes
    check_prefix(prefix, sizes)
    if not prefix.length:
        raise UserError("prefix = none: must have rows to be written")
    if prefix.layers is not None or prefix.keys_values is not None:
        kind, width = "PREFIX_TUNING", sizes.num_kv_heads * sizes.head_dim
        rows: Any = _keys_values(model, prefix)
    else:
        kind, width = "PROMPT_TUNING", sizes.embed_dim
        rows = prefix.embeddings if prefix.inputs is None else prefix.inputs @ model.params["embedding"]
    config = {
        "base_model_name_or_path": base or str(model.path),
        "inference_mode": True,
        "num_attention_heads": sizes.num_kv_heads if kind == "PREFIX_TUNING" else sizes.num_heads,
        "num_layers": sizes.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.length,
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "token_dim": width,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_ROWS: np.ascontiguousarray(rows, np.float32)}, folder / _WEIGHTS)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def import_peft(folder: str | Path, model: LanguageModel) -> Prefix:
    """Read an adapter of PEFT's prompt tuning or prefix tuning, in float32.

    Raises UserError where a file is missing, and RefusedFileError (a UserError) for a damaged one, another kind of
    adapter, one with a projection or for another model, and settings and tensors that this reader does not know.
    """
    folder, sizes = Path(folder), model.sizes
    settings = Settings(folder / _CONFIG, read_json(folder / _CONFIG))
    kind, length = settings.take("peft_type"), settings.whole("num_virtual_tokens")
    layer = 2 * sizes.num_kv_heads * sizes.head_dim
    width = {"PROMPT_TUNING": sizes.embed_dim, "PREFIX_TUNING": sizes.num_layers * layer}.get(str(kind))
    if width is None:
        raise settings.refusal("peft_type", kind, "'PROMPT_TUNING' or 'PREFIX_TUNING'")
    settings.finish(_ONLY, _FREE)
    rows = _rows(folder / _WEIGHTS)
    if rows.shape != (length, width):
        raise RefusedFileError(
            f"{folder / _WEIGHTS} = rows of shape {rows.shape}: must be {(length, width)} for this model"
        )
    if kind == "PROMPT_TUNING":
        return Prefix(embeddings=jax.device_put(rows))
    each = rows.reshape(length, sizes.num_layers, 2, -1)
    return Prefix(keys_values=jax.device_put(np.moveaxis(each, 0, 2)))


def _keys_values(model: LanguageModel, prefix: Prefix) -> np.ndarray:
    """Return what each block's attention reads at the prefix positions, as PEFT has it: (L, layers * 2 * width)."""
    trace = inspect(model.predictor, model.params, np.zeros((1, 2), np.int32), prefix)
    shared = model.sizes.num_heads // model.sizes.num_kv_heads  # heads that read the same keys and values
    readings = [layer.reading for layer in trace.layers if layer.reading is not None]
    each = np.array([(r.prefix_key[0, ::shared], r.prefix_value[0, ::shared]) for r in readings])  # layers, 2, heads, L
    return np.moveaxis(each, 3, 0).reshape(prefix.length, -1)


def _rows(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"folder = {path.parent}: must have a file {path.name}")
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            names = sorted(opened.keys())
            rows = opened.get_tensor(_ROWS).astype(np.float32) if names == [_ROWS] else None
    except Exception as error:  # whatever the package trips over
        raise RefusedFileError(f"{path} = no whole safetensors file: must be one: {in_one_line(error)}") from None
    if rows is None or rows.ndim != 2 or not np.isfinite(rows).all():
        raise RefusedFileError(f"{path} = {', '.join(names)}: must be {_ROWS} alone, two axes of finite numbers")
    return rows
