"""How far a trained network's heads are from Eq. 6 and 7 of Petrov, Torr & Bibi (2024), in their own precision."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bayesprompt.measures.attention import (
    Reading,
    attention,
    bias_decomposition,
    content_only,
    outputs,
    relative_content_attention,
    spectrum,
)


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
    whole, parts = outputs(reading), bias_decomposition(reading)
    content = relative_content_attention(reading), attention(content_only(reading)).content
    return Errors(
        _worst(*content),
        _worst(parts.bias + parts.kept, whole),
        beyond_rank(whole - parts.kept, whole, reading.prefix_key.shape[-2]),
    )


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
