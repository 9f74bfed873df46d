"""Four Transformers with weights chosen by hand, which a virtual token commands completely (Appendix A).

Tokens are 0-based: 0..V-1. (With the printed codes m(x)/V of 1-based tokens, A.2 to A.4 decode one too high, since the
last layer's tangents touch at 0, 1/V, ..., (V-1)/V. The printed W_K^fst of Eq. 8 ends in ones, where it needs zeros.)
Everything is float64 and exact up to its rounding. Equations are those of Petrov, Torr & Bibi (2024).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bayesprompt.checks import UserError, check_integer, check_tokens
from bayesprompt.measures.attention import Head, attention_block

# Neighbouring tokens' confidences differ by 1/V**2 where they should: beyond this V, float64 rounds them together.
LARGEST_V = 2**24
# A.4 keeps a number of V digits in base V next to 1, in one float64: 13**13 < 2**50 < 14**14.
LARGEST_PAIRS_V = 13
# Scores of rows that are to be ignored lie this far below: exp(-1000) is 0 in float64, so attention is 0 or 1 exactly.
SCORE_GAP = 1000.0

Tokens = Int[np.ndarray, "*B rows"]


class AttentionLayer(NamedTuple):
    """An attention block: its heads, and the inverse temperature T."""

    heads: tuple[Head, ...]
    T: float


class LinearLayer(NamedTuple):
    """A linear layer x -> M x + b, followed by a ReLU if `relu`."""

    M: Float[np.ndarray, "d_out d_in"]
    b: Float[np.ndarray, " d_out"]
    relu: bool = True


class Construction(NamedTuple):
    """A Transformer (Eq. 3): columns of E embed tokens, one-hot positions of `context` rows are appended to them."""

    E: Float[np.ndarray, "d_e V"]
    context: int
    layers: tuple[AttentionLayer | LinearLayer, ...]


def unconditional(V: int, N: int) -> Construction:
    """Build A.1: one virtual token makes it write any of the V**N sequences of N tokens, whatever E is.

    Raises ValueError for V outside 1..2**24 or N < 1.
    """
    check_integer("V", V, 1, LARGEST_V)
    check_integer("N", N, 1)
    zeros, eye, first = np.zeros((N, N)), np.eye(N), np.eye(1, N)
    fst = Head(np.c_[np.zeros((1, N)), np.ones((1, N))], np.c_[np.zeros((1, N)), first], np.c_[eye, zeros])
    pos = Head(*(np.c_[zeros, eye],) * 3)
    # Token v spells v, v + 1, ...: as different as V tokens can be.
    E = (np.arange(V) + np.arange(N)[:, None]) % V / V
    return Construction(E, N, (AttentionLayer((fst, pos), SCORE_GAP * N**0.5), *_read_out(N, V)))


def conditional(V: int) -> Construction:
    """Build A.2 (Theorem 1): one virtual token makes it answer any token by any map of tokens to tokens.

    Raises ValueError for V outside 1..2**24.
    """
    check_integer("V", V, 1, LARGEST_V)
    value, none, eye = np.c_[np.eye(V), np.zeros((V, 2))], np.zeros((1, V)), np.eye(2)
    fst = Head(np.c_[none, np.ones((1, 2))], np.c_[none, np.eye(1, 2)], value)
    val = Head(*(np.c_[np.zeros((2, V)), eye],) * 2, value)
    return Construction(np.eye(V), 2, (AttentionLayer((fst, val), SCORE_GAP * 2**0.5), *_read_out(V, V)))


def longer_responses(V: int, N_0: int) -> Construction:
    """Build A.3: N_0 virtual tokens make it answer any token by any map of tokens to N_0 tokens.

    Raises ValueError for V outside 1..2**24 or N_0 < 1.
    """
    check_integer("V", V, 1, LARGEST_V)
    check_integer("N_0", N_0, 1)
    N = 2 * N_0
    value, none = np.c_[np.eye(V), np.zeros((V, N))], np.zeros((1, V))
    user = Head(np.c_[none, np.ones((1, N))], np.c_[none, np.eye(N)[[N_0]]], value)
    shift = np.eye(N, N, N_0)  # position N_0 + i asks for position i
    back = Head(np.c_[np.zeros((N, V)), shift], np.c_[np.zeros((N, V)), np.eye(N)], value)
    return Construction(np.eye(V), N, (AttentionLayer((user, back), SCORE_GAP * N**0.5), *_read_out(V, V)))


def longer_inputs(V: int) -> Construction:
    """Build A.4: one virtual token (behind a zero one) makes it answer any two tokens by any map of pairs to tokens.

    Raises ValueError for V outside 1..13: the virtual token holds V numbers of V digits in base V.
    """
    check_integer("V", V, 1, LARGEST_PAIRS_V)
    eye, none = np.eye(V), np.zeros((V, V))

    def looking_at(asking: int, asked: int, top: int, bottom: int) -> Head:
        """Build a head whose row `asking` looks at row `asked` and whose other rows look at the dummy, row 0.

        The value is its embedding times `top` and `bottom` in the two halves of the residual stream.
        """
        queries = np.array([np.arange(4) != asking, np.arange(4) == asking], float)
        keys = np.eye(4)[[0, asked]]
        values = np.block([[top * eye, np.zeros((V, 4))], [bottom * eye, np.zeros((V, 4))]])
        return Head(np.c_[np.zeros((2, V)), queries], np.c_[np.zeros((2, V)), keys], values)

    first = (looking_at(2, 1, 1, 0), looking_at(2, 2, 1, 0), looking_at(3, 3, 0, 2))
    upper, lower = np.repeat([[1.0, 0.0]], V, axis=1), np.repeat([[0.0, 1.0]], V, axis=1)
    second = (Head(lower, upper, np.c_[eye, none]), Head(lower, lower, np.c_[none, eye]))
    layers = (
        AttentionLayer(first, SCORE_GAP * 2**0.5),
        LinearLayer(np.eye(2 * V), -np.ones(2 * V)),
        *unpack(V),
        AttentionLayer(second, SCORE_GAP * V),  # an unpacked map's entries sum to at least 1/V, unless all are 0
        *_read_out(V, V),
    )
    return Construction(eye, 4, layers)


def unpack(V: int) -> tuple[LinearLayer, ...]:
    """Build A.4's `unpack`, which the paper argues to exist: digits of a number in base V, and V more entries kept.

    In: 2V entries, of which the first V sum to k / V**V, for a whole number k. Out: its digits / V, lowest first, and
    the last V entries. One digit a stage, highest first, in two ReLU layers: h_c = ReLU(8 (k - c V**i) + 4), whose sign
    says whether the digit is at least c, and g_c = ReLU(1 - h_c), which is 1 or 0. The digit is the number of c with
    g_c = 0, and the next stage goes on with k - digit V**i. All is in whole numbers below 2**53, and right for a k that
    is off by less than 3/8. Size: 2 V ReLU layers with 5 V**2 - V units, at most 3 V - 1 in each, and a linear one.
    """
    kept = np.eye(V)
    # What is known so far, linear in the last layer's units: k, the digits (lowest first), the kept entries.
    known = np.block([[np.full((1, V), float(V) ** V), np.zeros((1, V))], [np.zeros((V, V)), kept]])
    offset, layers, steps = np.zeros(V + 1), [], np.arange(1, V)
    for done, power in enumerate(float(V) ** np.arange(V - 1, -1, -1)):
        size = 1 + done + V
        compare = np.zeros((V - 1, size))
        compare[:, 0] = 8
        M = np.vstack([compare, np.eye(size)]) @ known
        b = np.concatenate([compare @ offset - 8 * power * steps + 4, offset])
        layers.append(LinearLayer(M, b))
        sign = np.diag(np.r_[-np.ones(V - 1), np.ones(size)])
        layers.append(LinearLayer(sign, np.r_[np.ones(V - 1), np.zeros(size)]))
        # The digit is V - 1 - sum(g): a new row after k, and k loses digit * power.
        known = np.insert(np.c_[np.zeros((size, V - 1)), np.eye(size)], 1, 0, axis=0)
        known[:2, : V - 1] = [[power], [-1]]
        offset = np.r_[-(V - 1) * power, V - 1.0, np.zeros(size - 1)]
    scale = np.r_[np.full(V, 1 / V), np.ones(V)]
    return (*layers, LinearLayer(scale[:, None] * known[1:], scale * offset[1:], relu=False))


def encode_sequence(tokens: Tokens, V: int) -> Float[np.ndarray, "*B 1 rows"]:
    """Return A.1's virtual token, s_1 = (Y_1 / V, ..., Y_N / V); raises ValueError for tokens outside 0..V-1."""
    return check_tokens(tokens, V)[..., None, :] / V


def encode_map(m: Int[np.ndarray, "*B V"]) -> Float[np.ndarray, "*B 1 V"]:
    """Return A.2's virtual token, s_1 = (m(0) / V, ..., m(V-1) / V); raises ValueError for values outside 0..V-1."""
    return check_tokens(m, m.shape[-1], "m")[..., None, :] / m.shape[-1]


def encode_long_map(m: Int[np.ndarray, "*B V N_0"]) -> Float[np.ndarray, "*B N_0 V"]:
    """Return A.3's virtual tokens, s_i = (m(0)_i / V, ..., m(V-1)_i / V); raises ValueError for values not below V."""
    return check_tokens(m, m.shape[-2], "m").swapaxes(-1, -2) / m.shape[-2]


def encode_pair_map(m: Int[np.ndarray, "*B V V"]) -> Float[np.ndarray, "*B 2 V"]:
    """Return A.4's dummy and virtual token: s_1's entry f has the digits m(f, 0), m(f, 1), ..., lowest first.

    Raises ValueError for values outside 0..V-1, or V above 13.
    """
    V = m.shape[-1]
    check_integer("V", V, 1, LARGEST_PAIRS_V)
    levels = (check_tokens(m, V, "m").astype(np.int64) * V ** np.arange(V)).sum(axis=-1) / V**V
    return np.stack([np.zeros_like(levels), levels], axis=-2)


def forward(construction: Construction, embeddings: Float[np.ndarray, "*B p d_e"]) -> Float[np.ndarray, "*B p V"]:
    """Return every row's confidences (Eq. 3, before the softmax, which moves no maximum).

    Raises ValueError for more rows than the context holds.
    """
    p = embeddings.shape[-2]
    if p > construction.context:
        raise UserError(f"embeddings = {p} rows: must be at most {construction.context}")
    places = np.broadcast_to(np.eye(p, construction.context), (*embeddings.shape[:-1], construction.context))
    x = np.concatenate([embeddings, places], axis=-1)
    for layer in construction.layers:
        if isinstance(layer, AttentionLayer):
            x = attention_block(layer.heads, x, T=layer.T)
        else:
            x = x @ layer.M.T + layer.b
            x = np.maximum(x, 0) if layer.relu else x
    return x


def generate(
    construction: Construction, virtual: Float[np.ndarray, "*B n_S d_e"], user: Tokens, steps: int
) -> Int[np.ndarray, "*B steps"]:
    """Return the tokens that greedy decoding writes behind virtual tokens and user tokens (either may be of length 0).

    Raises ValueError for user tokens outside 0..V-1, or more steps than the context holds.
    """
    V = construction.E.shape[1]
    rows = np.concatenate([virtual, construction.E.T[check_tokens(user, V, "user")]], axis=-2)
    written = np.empty((*rows.shape[:-2], 0), int)
    for _ in range(steps):
        chosen = forward(construction, rows)[..., -1, :].argmax(axis=-1)[..., None]
        written = np.concatenate([written, chosen], axis=-1)
        if written.shape[-1] < steps:
            rows = np.concatenate([rows, construction.E.T[chosen]], axis=-2)
    return written


def tangents(V: int) -> LinearLayer:
    """Build L_proj (Eq. 10): confidence u is the tangent of (x - 1/2)**2 at u / V, so the largest names x."""
    point = np.arange(V) / V
    return LinearLayer((2 * point - 1)[:, None], 0.25 - point**2, relu=False)


def _read_out(size: int, V: int) -> tuple[LinearLayer, ...]:
    """Build L_ex, L_sum and L_proj, which read the one entry above 1, less 1, as a token."""
    select, add = LinearLayer(np.eye(size), -np.ones(size)), LinearLayer(np.ones((1, size)), np.zeros(1))
    return select, add, tangents(V)
