"""How much a prompt leaves open: the entropy of a coin's bias, along prompts and on average over them (E7).

On average a prompt narrows a belief, H(theta | X) <= H(theta); a particular one may widen it. The entropy of point
masses is discrete: at least 0, and 0 for a known coin. That of a density is differential: of any sign, and it falls
without end as the density narrows. The two do not compare, so each is a function of its own. All are in nats; `counts`
(*batch, 2) are heads and tails read so far, by default none. Letters in shapes: N length, M prompts.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import entr, gammaln

from bayesprompt.checks import Counts, Tokens, UserError, check_counts, check_integer, check_tokens
from bayesprompt.sources.coins import Evidence, Exchangeable
from bayesprompt.theory.bernoulli import NOTHING, Prior
from bayesprompt.theory.truncated_beta import moments, quadrature

Entropy = Callable[[Prior, np.ndarray], np.ndarray | np.floating]  # discrete or differential, or one like them


def discrete_entropy(prior: Prior, counts: Counts = NOTHING) -> Evidence:
    """Return H(theta | `counts`) >= 0 of a belief in point masses; ValueError for any other belief."""
    if not prior.is_discrete:
        raise UserError("prior = a belief with a density: must have point masses only")
    weights, biases = np.exp(prior.log_weights_after(counts)), np.array([piece.low for piece in prior.pieces])
    return sum(entr(weights[..., biases == bias].sum(-1)) for bias in np.unique(biases))


def differential_entropy(prior: Prior, counts: Counts = NOTHING) -> Evidence:
    """Return -E[log w(theta | `counts`)], of any sign, of a belief without point masses; ValueError for any other."""
    if not prior.is_density:
        raise UserError("prior = a belief with a point mass: must have a density only")
    prior, counts = _split(prior), check_counts(counts, 2)
    pairs = counts.reshape(-1, 2)
    low, high, alpha, beta = np.asarray(prior.pieces).T
    alpha, beta, log_weights = alpha + pairs[:, :1], beta + pairs[:, 1:], prior.log_weights_after(pairs)  # (pairs, C)
    log_scale = log_weights - moments(alpha, beta, low, high).log_mass
    total = np.zeros(len(pairs))
    for index in range(len(low)):
        rule = quadrature(alpha[:, index], beta[:, index], *np.full((2, len(pairs)), [[low[index]], [high[index]]]))
        here = low == low[index]  # pieces on the same interval add up, others do not meet
        rising, falling = (x[:, here, None] - 1 for x in (alpha, beta))
        parts = log_scale[:, here, None] + rising * rule.log_bias[:, None] + falling * rule.log_rest[:, None]
        mean_log = (rule.weights * np.logaddexp.reduce(parts, axis=1)).sum(-1)
        total -= np.exp(log_weights[:, index]) * mean_log
    return total.reshape(counts.shape[:-1])[()]


def _split(prior):
    """Return the same belief in pieces that share their interval or do not meet, without pieces of weight 0."""
    alive = [(p, log) for p, log in zip(prior.pieces, prior.log_weights, strict=True) if log > -np.inf]
    edges = np.unique([[piece.low, piece.high] for piece, _ in alive])
    pieces, log_weights = [], []
    for piece, log_weight in alive:
        inner = edges[(edges >= piece.low) & (edges <= piece.high)]
        parts = [piece._replace(low=low, high=high) for low, high in itertools.pairwise(inner)]
        low, high, alpha, beta = np.array([piece, *parts]).T
        whole, *shares = moments(alpha, beta, low, high).log_mass
        pieces += parts
        log_weights += [log_weight + share - whole for share in shares]
    return Prior(tuple(pieces), tuple(log_weights))


def entropy_along(prior: Prior, tokens: Tokens, entropy: Entropy) -> Float[np.ndarray, " N+1"]:
    """Return `entropy` after 0..N of the `tokens` (N,), 0 for heads and 1 for tails; ValueError for other tokens."""
    ones = np.cumsum(np.insert(check_tokens(tokens, 2), 0, 0))
    return entropy(prior, np.stack([np.arange(len(ones)) - ones, ones], axis=-1))


def prompts(prior: Exchangeable, length: int) -> tuple[Float[np.ndarray, "M 2"], Float[np.ndarray, " M"]]:
    """Return the counts of all prompts of `length` flips that the belief itself may draw, and their probabilities."""
    check_integer("length", length, 0)
    heads = np.arange(length + 1)
    counts = np.stack([heads, length - heads], axis=-1).astype(np.float64)
    log_probs = gammaln(length + 1) - gammaln(counts + 1).sum(-1) + prior.log_evidence(counts)
    return counts[log_probs > -np.inf], np.exp(log_probs[log_probs > -np.inf])


def expected_entropy(prior: Prior, length: int, entropy: Entropy) -> float:
    """Return E[`entropy` after a prompt of `length` flips that the belief itself draws], an exact sum over counts."""
    counts, probs = prompts(prior, length)
    return float(probs @ entropy(prior, counts))
