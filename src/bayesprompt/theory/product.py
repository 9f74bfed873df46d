"""A mixture that samples can prompt: every process draws a new coin at the start of each of ever longer segments.

For a target zeta, nu_zeta is the product of zeta over segments x_{i_(k-1)} .. x_{i_k - 1} of length k or 2 ** k, and xi
the mixture of all nu_zeta. A prompt that ends where a segment does leaves xi at the start of a fresh one, where nu_zeta
*is* zeta, until the segment ends. Genewein et al. (2025), Appendix E, "Product mixtures". Letters in shapes: C targets,
R prompts, L prompt length, G groups of sequences with the same heads in every segment. Token 0 is heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.special import gammaln, xlogy

from bayesprompt.checks import UserError, check_integer, check_tokens
from bayesprompt.sources.coins import Exchangeable, Vector
from bayesprompt.theory.bernoulli import check_weights

GROWTHS = {"linear": lambda k: k, "doubling": lambda k: 2**k}  # length of segment k = 1, 2, 3, ...
MAX_GROUPS = 2**18  # of sequences that are summed over; a longer horizon is refused
Tokens = Int[np.ndarray, "*R L"] | Sequence[int]  # (0,): no prompt


class Errors(NamedTuple):
    """Total variations at some horizon after each of R prompts (or lengths x R): `total` <= `learning` + `segments`."""

    total: Float[np.ndarray, "*R"]  # between xi(. | prompt) and the target zeta
    learning: Float[np.ndarray, "*R"]  # between xi(. | prompt) and nu_zeta(. | prompt): which target is it?
    segments: Float[np.ndarray, "*R"]  # between nu_zeta(. | prompt) and zeta: when is there a new coin?


@dataclass(frozen=True)
class ProductMixture:
    """The mixture xi, with `weights` (C,), of the nu_zeta of all `targets` zeta (C exchangeable sources of two tokens).

    Methods raise ValueError for tokens other than 0 and 1, and for a target that is no index of `targets`.
    """

    targets: tuple[Exchangeable, ...]
    weights: Vector
    growth: str = "doubling"

    def __post_init__(self):
        """Store the weights as floats; ValueError unless they are a distribution over sources of two tokens."""
        for target in self.targets:
            if not isinstance(target, Exchangeable) or target.num_tokens != 2:
                raise UserError(f"targets = {target}: must be exchangeable sources of 2 tokens")
        if self.growth not in GROWTHS:
            raise UserError(f"growth = {self.growth}: must be one of {', '.join(GROWTHS)}")
        object.__setattr__(self, "weights", check_weights(self.weights, len(self.targets)))

    def boundaries(self, length: int) -> list[int]:
        """Return the prompt lengths up to `length` that end with a segment, i_m - 1 for m = 0, 1, 2, ..."""
        check_integer("length", length, 0)
        ends, size = [0], GROWTHS[self.growth]
        while (end := ends[-1] + size(len(ends))) <= length:
            ends.append(end)
        return ends

    def segments(self, start: int, length: int) -> list[int]:
        """Cut the `length` tokens after the first `start` where segments end, and return the lengths of the parts."""
        check_integer("start", start, 0)
        cuts = [end for end in self.boundaries(start + length) if end > start]
        return [int(size) for size in np.diff([start, *cuts, start + length]) if size]

    def log_likelihoods(self, tokens: Tokens) -> Float[np.ndarray, "*R C"]:
        """Return log nu_zeta(x_{1:L}), nats, for each target zeta and each of the sequences `tokens` (*R, L)."""
        tokens = check_tokens(tokens, 2)
        sizes = self.segments(0, tokens.shape[-1])
        if not sizes:
            return np.zeros((*tokens.shape[:-1], len(self.targets)))
        tails = np.add.reduceat(tokens, np.cumsum([0, *sizes[:-1]]), axis=-1, dtype=np.int64)
        counts = np.stack([np.array(sizes) - tails, tails], axis=-1)  # (*R, segments, 2)
        different, which = np.unique(counts.reshape(-1, 2), axis=0, return_inverse=True)  # few: evaluate each once
        log_probs = np.stack([target.log_evidence(different) for target in self.targets], axis=-1)
        return log_probs[which.reshape(counts.shape[:-1])].sum(-2)

    def log_evidence(self, tokens: Tokens) -> Float[np.ndarray, "*R"] | np.floating:
        """Return log xi(x_{1:L}), nats; it is -inf for a sequence that no target admits."""
        return np.logaddexp.reduce(self.log_likelihoods(tokens) + xlogy(1.0, self.weights), axis=-1)

    def posterior(self, tokens: Tokens) -> Float[np.ndarray, "*R C"]:
        """Return P(zeta | x_{1:L}); raises ValueError for a sequence that no target admits."""
        joint = self.log_likelihoods(tokens) + xlogy(1.0, self.weights)
        evidence = np.logaddexp.reduce(joint, axis=-1, keepdims=True)
        if np.isneginf(evidence).any():
            raise UserError("tokens = a sequence of probability 0: must be one that some target admits")
        return np.exp(joint - evidence)

    def sample(self, target: int, length: int, prompts: int, seed: int) -> Int[np.ndarray, "R L"]:
        """Draw `prompts` sequences of `length` tokens from the nu_zeta of the target with this index."""
        check_integer("prompts", prompts, 1)
        rng, zeta = np.random.default_rng(seed), self._target(target)
        parts = [np.zeros((prompts, 0), np.int64)]
        for size in self.segments(0, length):
            probs = heads_of(zeta, size)
            heads = rng.choice(size + 1, prompts, p=probs / probs.sum())
            tails_last = np.arange(size) >= heads[:, None]
            parts.append(rng.permuted(tails_last, axis=1).astype(np.int64))  # all orders of the same heads are alike
        return np.concatenate(parts, axis=1)

    def errors(self, prompts: Tokens, target: int, horizon: int) -> Errors:
        """Return the total variations over the next `horizon` tokens after each prompt (R, L).

        They are exact sums over all 2 ** horizon sequences, grouped by heads per segment. Raises ValueError for more
        than 2 ** 18 groups, and for a prompt that the target rules out.
        """
        prompts = np.atleast_2d(check_tokens(prompts, 2))
        zeta, sizes = self._target(target), self._future(prompts.shape[-1], horizon)
        posterior, begun = self.posterior(prompts), self._begun(prompts)
        if (posterior[:, target] == 0).any():
            raise UserError(f"prompts = one of probability 0 under target {target}: must be prompts that it admits")
        log_sequences, heads = _groups(sizes)
        goal = np.exp(log_sequences + zeta.log_evidence(np.stack([heads, horizon - heads], axis=-1)))
        found = np.zeros((3, len(prompts)))
        for counts in np.unique(begun, axis=0):  # at a boundary: nothing, for all prompts
            nu = np.exp(np.stack([_log_futures(source, counts, sizes) for source in self.targets]) + log_sequences)
            for row in np.flatnonzero((begun == counts).all(-1)):
                xi = posterior[row] @ nu
                found[:, row] = [0.5 * abs(p - q).sum() for p, q in ((xi, goal), (xi, nu[target]), (nu[target], goal))]
        return Errors(*found)

    def heads(self, prompt: Tokens, horizon: int) -> Float[np.ndarray, " K"]:
        """Return xi(k heads in the next `horizon` tokens | one prompt (L,)), k = 0..horizon; refuses as `errors`."""
        prompt = check_tokens(prompt, 2)
        log_sequences, heads = _groups(sizes := self._future(prompt.shape[-1], horizon))
        each = np.stack([_log_futures(source, self._begun(prompt), sizes) for source in self.targets])
        return np.bincount(heads, self.posterior(prompt) @ np.exp(each + log_sequences), horizon + 1)

    def _future(self, length: int, horizon: int) -> list[int]:
        """Return how segments cut the next `horizon` tokens; raises ValueError if too many groups are to be summed."""
        check_integer("horizon", horizon, 1)
        sizes = self.segments(length, horizon)
        if np.prod([size + 1.0 for size in sizes]) > MAX_GROUPS:
            raise UserError(f"horizon = {horizon}: must leave {MAX_GROUPS} groups or fewer to sum over")
        return sizes

    def _begun(self, tokens: np.ndarray) -> Int[np.ndarray, "*R 2"]:
        """Count the heads and tails that were read of the segment that goes on."""
        return counts_of(tokens[..., self.boundaries(tokens.shape[-1])[-1] :])

    def _target(self, index: int) -> Exchangeable:
        check_integer("target", index, 0, len(self.targets) - 1)
        return self.targets[index]


def errors_of_samples(
    mixture: ProductMixture, target: int, horizon: int, lengths: Sequence[int], prompts: int = 64, seed: int = 0
) -> Errors:
    """Return `errors` (lengths, R) after the first `lengths` tokens of each of R = `prompts` drawn from nu_zeta."""
    drawn = mixture.sample(target, max(lengths), prompts, seed)
    each = [mixture.errors(drawn[:, :length], target, horizon) for length in lengths]
    return Errors(*map(np.stack, zip(*each, strict=True)))


def heads_of(source: Exchangeable, horizon: int) -> Float[np.ndarray, " K"]:
    """Return P(k heads among `horizon` tokens) of an exchangeable source of coins, k = 0..horizon."""
    check_integer("horizon", horizon, 1)
    log_sequences, heads = _groups([horizon])
    return np.exp(log_sequences + source.log_evidence(np.stack([heads, horizon - heads], axis=-1)))


def variation_between(first: Exchangeable, second: Exchangeable, horizon: int) -> float:
    """Return the total variation between two exchangeable sources of coins over `horizon` tokens, a sum over heads."""
    return float(0.5 * abs(heads_of(first, horizon) - heads_of(second, horizon)).sum())


def counts_of(tokens: Integer[np.ndarray, "*R L"]) -> Int[np.ndarray, "*R 2"]:
    """Count the heads (0) and tails (1) of each sequence."""
    tails = tokens.sum(-1, dtype=np.int64)
    return np.stack([tokens.shape[-1] - tails, tails], axis=-1)


def _groups(sizes: Sequence[int]) -> tuple[Float[np.ndarray, " G"], Int[np.ndarray, " G"]]:
    """Return, for all combinations of heads per part, the log of how many sequences each has, and its heads in all."""
    log_sequences, heads = np.zeros(1), np.zeros(1, np.int64)
    for size in sizes:
        k = np.arange(size + 1)
        log_choose = gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1)
        log_sequences, heads = np.add.outer(log_sequences, log_choose).ravel(), np.add.outer(heads, k).ravel()
    return log_sequences, heads


def _log_futures(source: Exchangeable, read: np.ndarray, sizes: Sequence[int]) -> Float[np.ndarray, " G"]:
    """Return log P(a sequence of each group | `read`, the counts of the segment that goes on), in the groups' order."""
    total, before = np.zeros(1), source.log_evidence(read)
    if np.isneginf(before):
        before = 0.0  # the prompt has ruled this source out, and its posterior is 0
    for size in sizes:
        k = np.arange(size + 1)
        counts = np.stack([k, size - k], axis=-1) + read
        total = np.add.outer(total, source.log_evidence(counts) - before).ravel()
        read, before = 0, 0.0  # all further segments start from nothing
    return total
