"""How far heads are from Eq. 6 and 7, and how much of what a prefix could do is used (Appendices B and C).

Everything is NumPy: float64, but for the identities, which are judged in the readings' own precision. Equations are
those of Petrov, Torr & Bibi (2024).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import (
    Head,
    LogitTerms,
    Numbers,
    Reading,
    attention,
    attention_block,
    bias_decomposition,
    content_only,
    next_layer_decomposition,
    outputs,
    read_rows,
    relative_content_attention,
    relative_prefix_attention,
    spectrum,
)


def participation_ratio(x: Float[Numbers, "B d"]) -> float:
    """Return (sum_r l_r)^2 / sum_r l_r^2, l_r the eigenvalues of the covariance of B vectors: 1 to min(B - 1, d).

    It counts the directions in which the vectors vary: k where k variances are alike and the others 0.
    Raises UserError for vectors that do not vary at all.
    """
    x = np.asarray(x, np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    if not values[0] > 0:
        raise UserError(f"x = {len(x)} equal vectors: must vary")
    variances = (values / values[0]) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum())


def bias_directions(reading: Reading, row: int) -> Float[np.ndarray, " H"]:
    """Return the participation ratio of each head's bias at one row of content, over the batch (Appendix B).

    reading has leading axes (B, H). The bias sum_j A_{i,S_j} W_V s_j varies in min(n_S, d) directions at most.
    Raises UserError for a head whose bias is the same for every input.
    """
    bias = bias_decomposition(up_to(reading, row)).bias[:, :, -1]
    return np.array([participation_ratio(bias[:, head]) for head in range(bias.shape[1])])


def prefix_range(reading: Reading, row: int) -> Float[np.ndarray, "3 H S"]:
    """Return Figure 7's ranges: over the batch, of one row's attention within the prefix, to each of its rows, by head.

    They are the 1st, 50th and 99th percentiles. reading has leading axes (B, H).
    """
    return np.quantile(relative_prefix_attention(up_to(reading, row))[:, :, -1], (0.01, 0.5, 0.99), axis=0)


def moved_attention(a: Float[Numbers, "*rows n m"], b: Float[Numbers, "*rows n m"]) -> Float[np.ndarray, "*rows n"]:
    """Return sum_j |a_ij - b_ij| / 2, each row's total variation: the share of attention moved from a to b, 0 to 1.

    Rows are probabilities over the same m. Raises UserError for rows that do not sum to 1 (up to 1e-4, float32).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for name, rows in (("a", a), ("b", b)):
        if not (off := np.abs(rows.sum(axis=-1) - 1).max(initial=0.0)) <= 1e-4:
            raise UserError(f"{name} = rows that sum to 1 up to {off:.1e}: must be probabilities")
    return np.abs(a - b).sum(axis=-1) / 2


def up_to(reading: Reading, row: int) -> Reading:
    """Cut a reading down to one query row, in float64: keep that query, and the content that it can see.

    Raises UserError for a row outside 0..n-1.
    """
    n = reading.query.shape[-2]
    if not 0 <= row < n:
        raise UserError(f"row = {row}: must lie in 0..{n - 1}")
    end = reading.key.shape[-2] - n + row + 1
    query, key, value = reading.query[..., row : row + 1, :], reading.key[..., :end, :], reading.value[..., :end, :]
    parts = (query, key, value, reading.prefix_key, reading.prefix_value)
    return Reading(*(np.asarray(part, np.float64) for part in parts))


def composed_logits(
    first: tuple[Head, ...], second: Head, x: Float[np.ndarray, "n d"], prefix: Float[np.ndarray, "S d"]
) -> tuple[LogitTerms, Float[np.ndarray, "n n"]]:
    """Return the second layer's scores twice: by the four terms of Appendix C, and as it computes them.

    The second layer reads the first one's outputs (its heads summed), as they are; its own prefix is left out.
    """
    parts = [bias_decomposition(read_rows(head, x, prefix)) for head in first]
    bias, kept = (np.sum([part[field] for part in parts], axis=0) for field in (1, 2))
    terms = next_layer_decomposition(bias, kept, second)
    reading = read_rows(second, attention_block(first, x, prefix))
    return terms, np.asarray(reading.query @ reading.key.T)


class Errors(NamedTuple):
    """Errors of each head over a batch, relative to the largest entry of what they are measured on.

    content: attention within the content, with and without the prefix (Eq. 6). bias: the output against bias and what
    is kept (Eq. 7). rank: `beyond_rank` of the bias, for the prefix's S rows.
    """

    content: Float[np.ndarray, " H"]
    bias: Float[np.ndarray, " H"]
    rank: Float[np.ndarray, " H"]


def identity_errors(reading: Reading) -> Errors:
    """Return the errors of a reading with leading axes (B, H), as NumPy arrays."""
    whole, parts = np.asarray(outputs(reading)), bias_decomposition(reading)
    content = (relative_content_attention(reading), attention(content_only(reading)).content)
    with_prefix, without = (np.asarray(x) for x in content)
    bias, kept = np.asarray(parts.bias), np.asarray(parts.kept)
    rank = beyond_rank(whole - kept, whole, reading.prefix_key.shape[-2])
    return Errors(_worst(with_prefix, without), _worst(bias + kept, whole), rank)


def _worst(found: Float[np.ndarray, "B H n m"], reference: Float[np.ndarray, "B H n m"]) -> Float[np.ndarray, " H"]:
    return np.abs(found - reference).max((0, 2, 3)) / np.abs(reference).max((0, 2, 3))


def beyond_rank(
    bias: Float[np.ndarray, "B H n d"], whole: Float[np.ndarray, "B H n d"], rank: int
) -> Float[np.ndarray, " H"]:
    """Return each head's singular value number rank + 1 of the biases over all rows, relative to the outputs' norm."""
    if rank >= bias.shape[-1]:  # there are no more directions than that
        return np.zeros(bias.shape[1])
    rows = [x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[-1]) for x in (bias, whole)]
    return spectrum(rows[0])[:, rank] / np.linalg.norm(rows[1], 2, (1, 2))
