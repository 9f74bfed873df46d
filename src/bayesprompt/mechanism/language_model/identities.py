"""Do Eq. 6 and 7 of Petrov et al. (2024) hold in every layer and head of the language model, and what does it use?"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesprompt.mechanism.attention import (
    Reading,
    attention,
    bias_decomposition,
    content_only,
    outputs,
    relative_content_attention,
    spectrum,
)
from bayesprompt.mechanism.language_model.llama import Llama, inspect
from bayesprompt.mechanism.subspaces import bias_directions, prefix_range
from bayesprompt.predictors import Params
from bayesprompt.prefixes import Prefix


class Errors(NamedTuple):
    """How far each head is from the identities, relative to its largest entry, float32.

    content: attention within the content, with and without the prefix (Eq. 6). bias: the output against bias and what
    is kept (Eq. 7). rank: singular value S + 1 of the bias over all rows, relative to the output's largest.
    """

    content: Float[np.ndarray, "layers H"]
    bias: Float[np.ndarray, "layers H"]
    rank: Float[np.ndarray, "layers H"]


class Use(NamedTuple):
    """What a prefix's rows do at one row of content, over sentences (Figure 7, Appendix B)."""

    ranges: Float[np.ndarray, "layers 3 H S"]  # 1st, 50th and 99th percentile of the attention within the prefix
    directions: Float[np.ndarray, "layers H"]  # participation ratio of each head's bias


def read_layers(sizes: Llama, params: Params, tokens: Int[np.ndarray, "B N"], prefix: Prefix) -> list[Reading]:
    """Return what each block's attention reads: leading axes (B, H)."""
    whole = jax.device_get(inspect(sizes, params, tokens, prefix))
    return [Reading(*(part[layer] for part in whole)) for layer in range(sizes.num_layers)]


def identity_errors(readings: list[Reading]) -> Errors:
    """Return each layer's and head's errors over all sentences."""
    found = []
    for reading in readings:
        whole, parts = outputs(reading), bias_decomposition(reading)
        bias, size = whole - parts.kept, reading.prefix_key.shape[-2]
        rows = [x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[-1]) for x in (bias, whole)]
        beyond = spectrum(rows[0])[:, size] / np.linalg.norm(rows[1], 2, (1, 2))
        content = relative_content_attention(reading), attention(content_only(reading)).content
        found.append((_worst(*content), _worst(parts.bias + parts.kept, whole), beyond))
    return Errors(*(np.stack(x) for x in zip(*found, strict=True)))


def _worst(found: Float[np.ndarray, "B H n m"], reference: Float[np.ndarray, "B H n m"]) -> Float[np.ndarray, " H"]:
    return np.abs(found - reference).max((0, 2, 3)) / np.abs(reference).max((0, 2, 3))


def prefix_use(readings: list[Reading], row: int) -> Use:
    """Return how the attention on the prefix's rows, and the bias, vary over sentences at one row of content."""
    return Use(
        np.stack([prefix_range(reading, row) for reading in readings]),
        np.stack([bias_directions(reading, row) for reading in readings]),
    )
