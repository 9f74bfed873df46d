"""What functions take: integers, tokens and counts, checked once and refused in one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Num

Tokens = Int[np.ndarray | Array, "*batch N"]
Counts = Num[np.ndarray | Array, "*batch K"] | Sequence[int | float]  # (3, 1): three heads and one tail


class UserError(ValueError):
    """What a person can mend; its message is one line, "NAME = VALUE: must be ...", and all that a person needs."""


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise ValueError naming the argument unless `value` is an integer from `least` (to `most`)."""
    allowed = f">= {least}" if most is None else f"from {least} to {most}"
    right = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not right or value < least or (most is not None and value > most):
        raise UserError(f"{name} = {value}: must be an integer {allowed}")


def check_tokens(tokens: Tokens, num_tokens: int) -> Int[np.ndarray, "*batch N"]:
    """Return `tokens` as a NumPy array; raises ValueError unless all are integers in the alphabet."""
    tokens = np.asarray(tokens)
    wrong = (tokens < 0) | (tokens >= num_tokens) | (tokens.dtype.kind not in "iu")
    if wrong.any():
        raise UserError(f"tokens = {tokens[wrong][0]}: must be integers from 0 to {num_tokens - 1}")
    return tokens


def check_counts(counts: Counts, num_tokens: int, name: str = "counts") -> Float[np.ndarray, "*batch K"]:
    """Return `counts` as float64; raises ValueError unless they are finite, >= 0 and K on the last axis."""
    counts = np.asarray(counts, np.float64)
    if counts.shape[-1:] != (num_tokens,):
        raise UserError(f"{name} = array of shape {counts.shape}: must have {num_tokens} entries on the last axis")
    wrong = ~((counts >= 0) & (counts < np.inf))
    if wrong.any():
        raise UserError(f"{name} = {counts[wrong][0]}: must be finite numbers >= 0")
    return counts
