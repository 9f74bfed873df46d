"""How much of what a prefix could do is used: the bias's directions (Appendix B), and the next layer's attention (C).

Everything is NumPy, float64, whatever the precision of the readings. Equations are those of Petrov et al. (2024).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import (
    Head,
    LogitTerms,
    Numbers,
    Reading,
    attention,
    attention_block,
    bias_decomposition,
    next_layer_decomposition,
    read_rows,
)
from bayesprompt.models.gpt import GPT
from bayesprompt.models.predictor import Params
from bayesprompt.models.prefixes import Prefix

# The lowest and the highest of Figure 7's ranges, with the median between them.
RANGE = (0.01, 0.5, 0.99)


def participation_ratio(x: Float[Numbers, "B d"]) -> float:
    """Return (sum_r l_r)^2 / sum_r l_r^2, l_r the eigenvalues of the covariance of B vectors: 1 to min(B - 1, d).

    It counts the directions in which the vectors vary: k where k variances are alike and the others 0.
    Raises ValueError for vectors that do not vary at all.
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
    Raises ValueError for a head whose bias is the same for every input.
    """
    bias = bias_decomposition(up_to(reading, row)).bias[:, :, -1]
    return np.array([participation_ratio(bias[:, head]) for head in range(bias.shape[1])])


def prefix_range(
    reading: Reading, row: int, levels: Sequence[float] = RANGE, relative: bool = True
) -> Float[np.ndarray, "levels H S"]:
    """Return quantiles over the batch of one row's attention to each prefix row, head by head (Figure 7).

    reading has leading axes (B, H). relative: the attention within the prefix, which sums to 1, as in the figure.
    """
    found = attention(up_to(reading, row)).prefix[:, :, -1]
    return np.quantile(found / found.sum(axis=-1, keepdims=True) if relative else found, levels, axis=0)


def total_variation(a: Float[Numbers, "*rows n m"], b: Float[Numbers, "*rows n m"]) -> Float[np.ndarray, "*rows n"]:
    """Return sum_j |a_ij - b_ij| / 2 of every row: what share of attention one would have to move, 0 to 1.

    Rows are probabilities over the same m. Raises ValueError for rows that do not sum to 1 (up to 1e-4, float32).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for name, rows in (("a", a), ("b", b)):
        if not (off := np.abs(rows.sum(axis=-1) - 1).max(initial=0.0)) <= 1e-4:
            raise UserError(f"{name} = rows that sum to 1 up to {off:.1e}: must be probabilities")
    return np.abs(a - b).sum(axis=-1) / 2


def up_to(reading: Reading, row: int) -> Reading:
    """Return what one row of content reads, in float64: of the n rows that ask only this one, the last of its content.

    Raises ValueError for a row outside 0..n-1.
    """
    n = reading.query.shape[-2]
    if not 0 <= row < n:
        raise UserError(f"row = {row}: must lie in 0..{n - 1}")
    end = reading.key.shape[-2] - n + row + 1
    query, key, value = reading.query[..., row : row + 1, :], reading.key[..., :end, :], reading.value[..., :end, :]
    parts = (query, key, value, reading.prefix_key, reading.prefix_value)
    return Reading(*(np.asarray(part, np.float64) for part in parts))


def composed_heads(architecture: GPT, params: Params, layer: int) -> tuple[Head, ...]:
    """Return the heads of a block of a GPT as the paper writes them: rows of D numbers in, and, summed, D numbers out.

    A head's W_V is its part of the output projection times its value projection. Kept are these four matrices; left out
    are their biases, which the paper's heads do not have, and all that surrounds attention (LayerNorm, residual, MLP).
    Raises ValueError for a layer that is not there.
    """
    if not 0 <= layer < architecture.num_layers:
        raise UserError(f"layer = {layer}: must lie in 0..{architecture.num_layers - 1}")
    block, D, H = params["torso"][f"blocks_{layer}"], architecture.embed_dim, architecture.num_heads
    query, key, value = (
        np.asarray(block[name]["kernel"], np.float64).reshape(D, H, -1) for name in ("query", "key", "value")
    )
    out = np.asarray(block["attention_output"]["kernel"], np.float64).reshape(H, -1, D)
    return tuple(Head(query[:, h].T, key[:, h].T, out[h].T @ value[:, h].T) for h in range(H))


def first_rows(
    architecture: GPT, params: Params, tokens: Int[np.ndarray, "B N"], prefix: Prefix
) -> tuple[Float[np.ndarray, "B n D"], Float[np.ndarray, "S D"]]:
    """Return what the first block's attention reads, after its LayerNorm: content rows, n = N - 1, and prefix rows.

    Raises ValueError unless the prefix is given layer by layer, with a row for every pad.
    """
    if prefix.layers is None or prefix.length != architecture.pads:
        raise UserError(f"prefix = {prefix.length} rows: must be given layer by layer, {architecture.pads} rows")
    embedding, block = params["embedding"], params["torso"]["blocks_0"]
    x = np.asarray(embedding["tokens"], np.float64)[np.asarray(tokens)[:, :-1]]
    x = x + np.asarray(embedding["positions"], np.float64)[architecture.pads :][: x.shape[1]]
    s = np.asarray(prefix.layers[0], np.float64)
    if not architecture.first_norm:
        return x, s
    scale, shift = (np.asarray(block["attention_norm"][name], np.float64) for name in ("scale", "bias"))
    x, s = (
        (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5) * scale + shift
        for rows in (x, s)
    )
    return x, s


def composed_logits(
    first: tuple[Head, ...], second: Head, x: Float[np.ndarray, "n d"], prefix: Float[np.ndarray, "S d"]
) -> tuple[LogitTerms, Float[np.ndarray, "n n"]]:
    """Return the second layer's scores twice: by the four terms of Appendix C, and as it computes them.

    The second layer reads the first one's outputs (its heads summed), as they are; its own prefix is left out.
    """
    parts = [bias_decomposition(read_rows(head, x, prefix)) for head in first]
    terms = next_layer_decomposition(sum(part.bias for part in parts), sum(part.kept for part in parts), second)
    reading = read_rows(second, attention_block(first, x, prefix))
    return terms, reading.query @ reading.key.T
