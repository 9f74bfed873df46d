"""What `fit` and `hard_search` accept: a network's own parameters, and sources of its alphabet."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesprompt.checks import UserError, check_integer
from bayesprompt.files import array_name
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.settings import make_key, typed_key


def check_call(
    predictor: Any, tuner: Any, config: Any, key: Any, repetitions: Any, checkpoint: Any
) -> tuple[jax.Array, Path | None]:
    """Return the key, typed, and the checkpoint as a path; raises ValueError for arguments that are something else."""
    for name, given, parts in (
        ("predictor", predictor, ("init", "prompt", "predict", "architecture")),
        ("tuner", tuner, ("init", "inject")),
        ("config", config, ("steps", "batch", "length", "make_optimizer", "loss")),
    ):
        if missing := [part for part in parts if not hasattr(given, part)]:
            raise UserError(f"{name} = {type(given).__name__}: must have {', '.join(missing)}")
    check_integer("repetitions", repetitions, 1)
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise UserError(f"checkpoint = {checkpoint}: must be the path of a file")
    return typed_key(key), None if checkpoint is None else Path(checkpoint)


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
    return _shapes(jax.eval_shape(init, make_key(0)))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {array_name(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
