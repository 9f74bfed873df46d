"""A language model from somebody's file: network, parameters and tokeniser, and what readers of all formats share.

A reader ignores nothing: every tensor is used, and every setting is applied or known to change no number.
"""

import json
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError
from bayesprompt.models.llama_sizes import Llama, shapes
from bayesprompt.models.predictor import Params, Predictor


class LanguageModel(NamedTuple):
    """A network, its parameters, its tokeniser (of the package tokenizers, or None), and where it was read from."""

    predictor: Predictor
    params: Params
    tokenizer: Any
    path: Path

    @property
    def sizes(self) -> Llama:
        """The network's sizes."""
        return self.predictor.architecture

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids (N,) of a text, with no token put before or behind it."""
        return np.array(self._tokenizer().encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Any) -> str:
        """Return the text of token ids, special ones included."""
        return self._tokenizer().decode([int(t) for t in np.asarray(tokens).ravel()], skip_special_tokens=False)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise UserError(f"tokenizer = None: must be in {self.path}, and the package tokenizers installed, for text")
        return self.tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises UserError for no file, RefusedFileError for no object."""
    if not path.is_file():
        raise UserError(f"folder = {path.parent}: must have a file {path.name}")
    try:
        if isinstance(found := json.loads(path.read_text("utf-8")), dict):
            return found
        raise ValueError("no object")
    except (ValueError, RecursionError, OSError) as error:
        raise RefusedFileError(f"{path} = no JSON object: must be one: {in_one_line(error)}") from None


class Settings:
    """The settings of a file by name: each is taken once, and what nobody took must be known to change no number."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        """Take the settings of the file at `path`; those that are None count as absent."""
        self.path = path
        self.left = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, default: Any = None) -> Any:
        """Return a setting as it is in the file, or the default."""
        return self.left.pop(name, default)

    def whole(self, name: str, default: Any = None) -> int:
        """Return a setting that must be a whole number."""
        return self._convert(name, default, operator.index, "a whole number")

    def number(self, name: str, default: Any = None) -> float:
        """Return a setting that must be a number."""
        return self._convert(name, default, lambda value: value + 0.0, "a number")

    def make(self, build: Callable[..., Llama], *given: Any, **sizes: Any) -> Llama:
        """Return the network's sizes as `build` makes them; raises RefusedFileError for what it refuses."""
        try:
            return build(*given, **sizes)
        except UserError as error:
            raise RefusedFileError(f"{self.path} = sizes that make no network: {error}") from None

    def refusal(self, name: str, value: Any, wanted: str) -> RefusedFileError:
        """Return the error that names a setting, its value, and what it must be."""
        return RefusedFileError(f"{self.path} = {repr(name)[1:-1]:.80} {value!r:.80}: must be {wanted}")

    def finish(self, only: dict[str, Any], free: str) -> None:
        """Raise RefusedFileError unless all that was not taken has its value in `only`, or a name like `free`."""
        for name, value in self.left.items():
            if name in only and value != only[name]:
                raise self.refusal(name, value, repr(only[name]))
            if name not in only and not re.fullmatch(free, name):
                raise self.refusal(name, value, "absent (this reader knows no such)")

    def _convert(self, name: str, default: Any, convert: Callable, kind: str) -> Any:
        value = self.left.pop(name, default)
        try:
            return convert(value)
        except (TypeError, ValueError, OverflowError):
            raise self.refusal(name, value, kind) from None


class Stored(NamedTuple):
    """A tensor in a file: its shape, (outputs, inputs) for a matrix, and a function that reads it as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_params(path: Path, sizes: Llama, names: dict[str, str], tensors: dict[str, Stored]) -> Params:
    """Return the parameters in float32, each tensor read once; `names` has the file's name of each, {} for the layer.

    Raises RefusedFileError for a tensor that is missing, of another shape, not finite or unknown. Memory is taken after
    all names and shapes were seen to be right, at addresses that JAX takes as they are, without a copy.
    """
    unknown = set(tensors)
    for name, shape, _ in _places(sizes, names, shapes(sizes)):
        find_tensor(path, tensors, name, shape)
        unknown.remove(name)
    if unknown:
        raise RefusedFileError(f"{path} = weights {min(unknown)!r:.80}: must be absent (this reader knows no such)")
    params = jax.tree.map(lambda leaf: _aligned(leaf.shape), shapes(sizes))
    for name, shape, (leaf, layer) in _places(sizes, names, params):
        into = leaf if layer is None else leaf[layer].T
        into[...] = read_tensor(path, tensors, name, shape)
    return params


def find_tensor(path: Path, tensors: dict[str, Stored], name: str, shape: tuple[int, ...]) -> Stored:
    """Return a tensor, unread; raises RefusedFileError where there is none of this shape."""
    if name not in tensors:
        raise RefusedFileError(f"{path} = without the weights {name}: must have them")
    if tensors[name].shape != shape:
        raise RefusedFileError(f"{path} = {name} of shape {tensors[name].shape}: must be {shape}")
    return tensors[name]


def read_tensor(path: Path, tensors: dict[str, Stored], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor's numbers; raises RefusedFileError where they cannot be read or are not finite."""
    try:
        found = find_tensor(path, tensors, name, shape).read()
    except RefusedFileError:
        raise
    except Exception as error:  # whatever a reader trips over in a damaged file
        raise RefusedFileError(f"{path} = {name}: must be readable: {in_one_line(error)}") from None
    if not np.isfinite(found).all():
        raise RefusedFileError(f"{path} = {name} with numbers that are not finite: must be finite")
    return found


def _places(sizes: Llama, names: dict[str, str], tree: Params):
    """Yield each tensor's name in the file, its shape there, and its leaf of the tree with its layer, or None."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        name, stacked = names[path[-1].key], path[0].key == "torso"
        for layer in range(sizes.num_layers) if stacked else [None]:
            yield (name.format(layer), leaf.shape[:0:-1] if stacked else leaf.shape, (leaf, layer))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty float32 array at an address that JAX takes as it is, without a copy."""
    size, align = 4 * int(np.prod(shape)), 64
    raw = np.empty(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(np.float32).reshape(shape)


def in_one_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join((str(error) or repr(error)).split())
