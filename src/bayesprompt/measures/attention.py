"""What a prefix does to attention: it takes a share of every row's attention, and pays with a bias (Section 4).

`Reading` is what an attention block reads, as queries, keys and values, whatever the model. The functions on it work on
NumPy and JAX arrays alike, in their precision. Equations are those of Petrov, Torr & Bibi (2024).
"""

import functools
import operator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from bayesprompt.checks import UserError

Numbers = Array | np.ndarray


class Head(NamedTuple):
    """Weights of one attention head (Section 2), to be applied to columns as in the paper: W_Q x."""

    W_Q: Float[Numbers, "k d_in"]
    W_K: Float[Numbers, "k d_in"]
    W_V: Float[Numbers, "d_out d_in"]


class Reading(NamedTuple):
    """Queries of n content rows, the last of m content rows, and keys and values of those and of S prefix rows.

    Leading axes (batch, heads) are free. Scores are query times key: queries are scaled, by T / sqrt(k) in the paper.
    Content row i sees the prefix, and the content up to itself.
    """

    query: Float[Numbers, "*heads n k"]
    key: Float[Numbers, "*heads m k"]
    value: Float[Numbers, "*heads m d"]
    prefix_key: Float[Numbers, "*heads S k"]
    prefix_value: Float[Numbers, "*heads S d"]


class Attention(NamedTuple):
    """How a row's attention is divided: A_{i,S_j} over the prefix and A_ij over the content; together they sum to 1."""

    prefix: Float[Numbers, "*heads n S"]
    content: Float[Numbers, "*heads n m"]


class BiasDecomposition(NamedTuple):
    """The two parts of a prefixed head's output (Eq. 7, Appendix B): t_i^pt = bias_i + kept_i.

    share: sum_j A_{i,S_j}, the attention on the prefix. bias: sum_j A_{i,S_j} W_V s_j, in the span of S fixed vectors.
    kept: (1 - share_i) t_i, where t_i is the output without a prefix.
    """

    share: Float[Numbers, "*heads n"]
    bias: Float[Numbers, "*heads n d"]
    kept: Float[Numbers, "*heads n d"]


class LogitTerms(NamedTuple):
    """The four parts of the next layer's scores after a prefix (Appendix C); they sum to its logits.

    bias_bias: query and key are biases; for one head and one prefix row, alpha_i alpha_j mu^T H mu.
    content_bias, bias_content: the query's, or the key's, part is content; the other row enters by its bias.
    content_content: both are, (1 - alpha_i)(1 - alpha_j) times the logits without a prefix.
    """

    bias_bias: Float[Numbers, "*heads n n"]
    content_bias: Float[Numbers, "*heads n n"]
    bias_content: Float[Numbers, "*heads n n"]
    content_content: Float[Numbers, "*heads n n"]


def read_rows(
    head: Head, x: Float[Numbers, "*batch p d_in"], prefix: Float[Numbers, "S d_in"] | None = None, T: float | int = 1
) -> Reading:
    """Return what a head reads of content rows x behind a prefix (none: S = 0); T is the inverse temperature of Eq. 1.

    Raises UserError unless T > 0.
    """
    if not T > 0:
        raise UserError(f"T = {T}: must be > 0")
    shape = (*x.shape[:-2], 0 if prefix is None else len(prefix), x.shape[-1])
    xp = x.__array_namespace__()
    s = x[..., :0, :] if prefix is None else xp.broadcast_to(prefix, shape)
    query, key, value = (x @ W.T for W in head)
    return Reading(query * (T / head.W_Q.shape[0] ** 0.5), key, value, s @ head.W_K.T, s @ head.W_V.T)


def attention_block(
    heads: tuple[Head, ...],
    x: Float[Numbers, "*batch p d_in"],
    prefix: Float[Numbers, "S d_in"] | None = None,
    T: float | int = 1,
) -> Float[Numbers, "*batch p d_out"]:
    """Return t_1, ..., t_p (Eq. 2), the heads' outputs summed, of content rows x behind a prefix."""
    each = (outputs(read_rows(head, x, prefix, T)) for head in heads)
    return functools.reduce(operator.add, each)


def log_attention(reading: Reading) -> Attention:
    """Return log A of every content row (Eq. 1; with a prefix, the display after Eq. 5): one causal log-softmax.

    It is -inf for the content that a row does not see.
    """
    query, key, _, prefix_key, _ = reading
    xp = query.__array_namespace__()
    own = query @ key.swapaxes(-1, -2)
    n, m = own.shape[-2:]
    own = xp.where(xp.broadcast_to(xp.tri(n, m, m - n, dtype=bool), own.shape), own, -xp.inf)
    scores = xp.concatenate([query @ prefix_key.swapaxes(-1, -2), own], axis=-1)
    scores = scores - scores.max(axis=-1, keepdims=True)
    scores = scores - xp.log(xp.exp(scores).sum(axis=-1, keepdims=True))
    size = prefix_key.shape[-2]
    return Attention(scores[..., :size], scores[..., size:])


def attention(reading: Reading) -> Attention:
    """Return the attention A of every content row, over the prefix and the content."""
    return Attention(*(part.__array_namespace__().exp(part) for part in log_attention(reading)))


def outputs(reading: Reading) -> Float[Numbers, "*heads n d"]:
    """Return every content row's output t_i, head by head: attention times values, over prefix and content."""
    found = attention(reading)
    return found.prefix @ reading.prefix_value + found.content @ reading.value


def content_only(reading: Reading) -> Reading:
    """Return the same reading of the same content rows, without the prefix."""
    return reading._replace(prefix_key=reading.prefix_key[..., :0, :], prefix_value=reading.prefix_value[..., :0, :])


def relative_content_attention(reading: Reading) -> Float[Numbers, "*heads n m"]:
    """Return A_ij^pt / sum_r A_ir^pt, the attention within the content; Eq. 6 says that no prefix changes it."""
    return _within(log_attention(reading).content)


def relative_prefix_attention(reading: Reading) -> Float[Numbers, "*heads n S"]:
    """Return A_{i,S_j} / sum_r A_{i,S_r}, the attention within the prefix (Figure 7)."""
    return _within(log_attention(reading).prefix)


def _within(logs: Float[Numbers, "*rows n"]) -> Float[Numbers, "*rows n"]:
    """Return exp(logs) / sum exp(logs), whose terms may be too small for their precision by themselves."""
    weights = logs.__array_namespace__().exp(logs - logs.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def bias_decomposition(reading: Reading) -> BiasDecomposition:
    """Divide each head's output into what the prefix adds and what it leaves (Eq. 6, 7, Appendix B).

    `kept` comes from the output without a prefix, so that bias + kept equals `outputs` if and only if Eq. 7 holds.
    """
    found = attention(reading).prefix
    share = found.sum(axis=-1)
    return BiasDecomposition(
        share, found @ reading.prefix_value, (1 - share)[..., None] * outputs(content_only(reading))
    )


def spectrum(bias: Float[Numbers, "*heads n d"]) -> Float[np.ndarray, "*heads r"]:
    """Return the singular values of each head's biases over its n rows, falling, in float64.

    At most S of them differ from 0, up to rounding: a prefix of S rows adds biases of rank S (Appendix B).
    """
    return np.linalg.svd(np.asarray(bias, np.float64), compute_uv=False)


def next_layer_decomposition(
    bias: Float[Numbers, "n d"], kept: Float[Numbers, "n d"], head: Head, T: float | int = 1
) -> LogitTerms:
    """Divide the next layer's logits into four terms (Appendix C), if nothing stands between the two layers.

    bias and kept are the first layer's parts, summed over its heads; their sum is the second layer's input.
    """
    scale = T / head.W_Q.shape[0] ** 0.5
    queries, keys = ([part @ W.T for part in (bias, kept)] for W in (head.W_Q, head.W_K))
    b, t = (query * scale for query in queries)
    return LogitTerms(b @ keys[0].T, t @ keys[0].T, b @ keys[1].T, t @ keys[1].T)
