"""What functions take: integers, tokens and counts, checked once and refused in one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Num

Tokens = Int[np.ndarray | Array, "*batch N"]
Counts = Num[np.ndarray | Array, "*batch K"] | Sequence[int | float]  # (3, 1): three heads and one tail


class UserError(ValueError):
    """What a person can mend; its message is one line, "NAME = VALUE: must be ...", and all that a person needs."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # an array that is shown has several


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise ValueError naming the argument unless `value` is an integer from `least` (to `most`)."""
    allowed = f">= {least}" if most is None else f"from {least} to {most}"
    right = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not right or value < least or (most is not None and value > most):
        raise UserError(f"{name} = {value}: must be an integer {allowed}")


def check_settings(settings: Any, whole: Sequence[str], may_be_zero: Sequence[str] = ()) -> None:
    """Raise ValueError naming the first field that is no finite number > 0, or of `whole` no integer; some may be 0."""
    for name, value in vars(settings).items():
        if name in whole:
            check_integer(name, value, 1)
            continue
        right = isinstance(value, int | float | np.number) and (0 < value or (name in may_be_zero and value == 0))
        if not right or value == float("inf"):
            raise UserError(f"{name} = {value}: must be a finite number {'>=' if name in may_be_zero else '>'} 0")


def check_tokens(tokens: Tokens | Sequence[int], num_tokens: int, name: str = "tokens") -> Int[np.ndarray, "*batch N"]:
    """Return `tokens` as a NumPy array; raises ValueError unless all are integers in the alphabet."""
    tokens = _array(name, tokens)
    if not tokens.size and tokens.ndim:
        tokens = tokens.astype(np.int64)  # NumPy makes an empty list floats
    wrong = (tokens < 0) | (tokens >= num_tokens) if tokens.dtype.kind in "iu" else np.ones(tokens.shape, bool)
    if wrong.any() or not tokens.ndim:
        shown = tokens[wrong][0] if wrong.any() else tokens
        where = "" if tokens.ndim else ", in rows"
        raise UserError(f"{name} = {shown}: must be integers from 0 to {num_tokens - 1}{where}")
    return tokens


def check_counts(counts: Counts, num_tokens: int, name: str = "counts") -> Float[np.ndarray, "*batch K"]:
    """Return `counts` as float64; raises ValueError unless they are finite, >= 0 and K on the last axis."""
    counts = _array(name, counts)
    if counts.dtype.kind not in "biuf":
        raise UserError(f"{name} = {counts.flat[0] if counts.size else counts}: must be finite numbers >= 0")
    counts = counts.astype(np.float64)
    if counts.shape[-1:] != (num_tokens,):
        raise UserError(f"{name} = array of shape {counts.shape}: must have {num_tokens} entries on the last axis")
    wrong = ~((counts >= 0) & (counts < np.inf))
    if wrong.any():
        raise UserError(f"{name} = {counts[wrong][0]}: must be finite numbers >= 0")
    return counts


def _array(name: str, given: Any) -> np.ndarray:
    """Return what is given as an array; raises ValueError where its rows have different lengths."""
    try:
        return np.asarray(given)
    except ValueError:
        raise UserError(f"{name} = {given}: must be rows of one length") from None
