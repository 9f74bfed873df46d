"""What the attention of each of the language model's layers reads, and what it makes of a prefix."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from bayesprompt.measures.attention import Reading
from bayesprompt.measures.subspaces import bias_directions, prefix_range
from bayesprompt.models.llama import Llama, make_llama
from bayesprompt.models.predictor import Params
from bayesprompt.models.prefixes import Prefix
from bayesprompt.models.trace import inspect


class Use(NamedTuple):
    """What a prefix's rows do at one row of content, over sentences (Figure 7, Appendix B)."""

    ranges: Float[np.ndarray, "layers 3 H S"]  # 1st, 50th and 99th percentile of the attention within the prefix
    directions: Float[np.ndarray, "layers H"]  # participation ratio of each head's bias


def read_layers(sizes: Llama, params: Params, tokens: Int[np.ndarray, "B N"], prefix: Prefix) -> list[Reading]:
    """Return what each block's attention reads at every token: leading axes (B, H)."""
    one_more = np.pad(tokens, ((0, 0), (0, 1)))  # the last token is not read
    layers = inspect(make_llama(sizes, answer=1), params, one_more, prefix).layers
    return [jax.device_get(layer.reading) for layer in layers]


def prefix_use(readings: list[Reading], row: int) -> Use:
    """Return how the attention on the prefix's rows, and the bias, vary over sentences at one row of content."""
    return Use(
        np.stack([prefix_range(reading, row) for reading in readings]),
        np.stack([bias_directions(reading, row) for reading in readings]),
    )
