"""What `fit` and `hard_search` accept: a network's own parameters, and sources of its alphabet."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesprompt.checks import UserError
from bayesprompt.files import array_name
from bayesprompt.models.predictor import Params, Predictor


def check_network(predictor: Predictor, base: Params) -> None:
    """Raise ValueError unless the parameters have the names and shapes of those that the predictor makes."""
    wanted, given = _made(predictor.init), _shapes(base)
    for name in sorted(wanted.keys() | given.keys()):
        if (found := given.get(name, "none")) != (shape := wanted.get(name, "none")):
            raise UserError(
                f"base.{name} = array of shape {found}: must be {shape}, as this predictor's network has it"
            )


def check_source(source: Any, num_tokens: int, repetitions: int | None = None) -> None:
    """Raise ValueError unless the source is a tree of arrays that deals in the network's K tokens.

    With `repetitions`, each leaf must have that many rows: one source for each repetition.
    """
    for path, leaf in jax.tree.leaves_with_path(source):
        name, leaf = f"source.{array_name(path)}", leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype != bool:
            kind = type(source).__name__
            raise UserError(f"source = {kind}: must be a tree of arrays, as register_dataclass makes it")
        if repetitions is not None and leaf.shape[:1] != (repetitions,):
            raise UserError(f"{name} = array of shape {leaf.shape}: must have {repetitions} rows, one a repetition")
    one = source if repetitions is None else jax.tree.map(lambda x: np.asarray(x)[0], source)
    if not hasattr(one, "num_tokens"):
        raise UserError(f"source = {type(source).__name__}: must state num_tokens")
    if one.num_tokens not in (num_tokens, None):
        raise UserError(f"source.num_tokens = {one.num_tokens}: must be {num_tokens}, as many as the network has")


@functools.lru_cache
def _made(init: Callable) -> dict[str, tuple[int, ...]]:
    return _shapes(jax.eval_shape(init, jax.random.key(0)))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {array_name(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
