"""How much worse than the best: log-loss, regret on sampled sequences, and exact regret by sums over counts.

Sampled regret takes any predictor's log-probabilities; exact regret needs exchangeable coins, for which a sequence
matters only through its heads and tails. Letters in shapes: B sequences, N length, K tokens. All numbers are in nats.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import minimize
from scipy.special import expit, gammaln, logit, rel_entr

from bayesprompt.sources import Counts, Exchangeable, check_counts, check_tokens

LogProbs = Float[np.ndarray | Array, "B N K"]
Tokens = Int[np.ndarray | Array, "B N"]


class Regret(NamedTuple):
    """Cumulative regret R(n), n = 1..N, averaged over sequences."""

    mean: Float[np.ndarray, " N"]
    stderr: Float[np.ndarray, " N"]  # standard error of that mean; NaN for a single sequence


class HardPrompt(NamedTuple):
    """The best prompt of L tokens, as far as an exchangeable predictor can tell prompts apart."""

    counts: tuple[int, int]  # heads and tails in the prompt
    regret: Float[np.ndarray, " N"]  # exact R(n), n = 1..N, after it


class BetaFit(NamedTuple):
    """The coin prior whose Bayes predictor predicts most like a given predictor."""

    alpha: float  # pseudo-heads
    beta: float  # pseudo-tails
    misfit: float  # what its predictions leave unexplained: expected KL over all tabulated steps, nats


class Quantiles(NamedTuple):
    """Median and quartiles over repetitions."""

    q25: np.ndarray | np.floating
    median: np.ndarray | np.floating
    q75: np.ndarray | np.floating


def log_loss(log_probs: LogProbs, tokens: Tokens) -> Float[np.ndarray, "B N"]:
    """-log p(x_n) (the summands of Eq. 3) in float64; ValueError for tokens outside the alphabet."""
    log_probs = np.asarray(log_probs, np.float64)
    tokens = check_tokens(tokens, log_probs.shape[-1])
    if tokens.shape != log_probs.shape[:-1]:
        raise ValueError(f"tokens = array of shape {tokens.shape}: shape {log_probs.shape[:-1]}, that of log_probs")
    return -np.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def cumulative_regret(log_probs: LogProbs, tokens: Tokens, oracle_log_probs: LogProbs) -> Regret:
    """R(n), n = 1..N, of Eq. 10: excess log-loss over the oracle that knows tau, summed over steps 1..n.

    Raises ValueError where the oracle gives a token probability 0: the token came up, so this is not its oracle.
    """
    return _excess(log_probs, tokens, oracle_log_probs, "oracle_log_probs")


def excess_log_loss(log_probs: LogProbs, tokens: Tokens, bayes_log_probs: LogProbs) -> Regret:
    """Bayes regret (Eq. 4 up to step n): the same over the best predictor that does not know tau."""
    return _excess(log_probs, tokens, bayes_log_probs, "bayes_log_probs")


def _excess(log_probs, tokens, reference, name) -> Regret:
    reference_loss = log_loss(reference, tokens)
    if not np.isfinite(reference_loss).all():
        worst = -reference_loss[~np.isfinite(reference_loss)][0]
        raise ValueError(f"{name} = {worst} at a token that came up: a finite log-probability")
    excess = np.cumsum(log_loss(log_probs, tokens) - reference_loss, axis=1)
    if len(excess) == 1:
        return Regret(excess[0], np.full_like(excess[0], np.nan))
    with np.errstate(invalid="ignore"):  # a mean of inf has no standard error: NaN
        return Regret(excess.mean(axis=0), excess.std(axis=0, ddof=1) / np.sqrt(len(excess)))


def exact_regret(
    predictor: Exchangeable, target: Exchangeable, length: int, prompt_counts: Counts = (0, 0)
) -> Float[np.ndarray, "{length}"]:
    """Expected R(n) (Eq. 10), n = 1..length, of a coin predictor that read a prompt of `prompt_counts`, on `target`.

    R(n) = sum_{m < n} sum_k P(k heads in m) sum_x P(x | k, m) (-log q(x | k, m, prompt)) - n E_tau[H(tau)]; inf where
    the predictor rules out what may happen. Memory grows as length ** 2. Raises ValueError for other than coins.
    """
    _check_coins(predictor=predictor, target=target)
    _check_at_least("length", length, 1)
    prompt = check_counts(prompt_counts, 2, "prompt_counts")
    return _regret_after(predictor, prompt, *_outcomes(target, length), target.mean_entropy())


def best_hard_prompt(predictor: Exchangeable, target: Exchangeable, prefix_length: int, length: int) -> HardPrompt:
    """Search all compositions of exactly `prefix_length` tokens for the least exact R(length) (Eq. 7-9).

    Of prompts within 1e-9 nats of the best, the one with fewest heads. Raises ValueError as `exact_regret` does.
    """
    _check_coins(predictor=predictor, target=target)
    _check_at_least("prefix_length", prefix_length, 0)
    _check_at_least("length", length, 1)
    outcomes = (*_outcomes(target, length), target.mean_entropy())
    prompts = [(heads, prefix_length - heads) for heads in range(prefix_length + 1)]
    found = [HardPrompt(prompt, _regret_after(predictor, np.asarray(prompt), *outcomes)) for prompt in prompts]
    least = min(prompt.regret[-1] for prompt in found)
    return next(prompt for prompt in found if prompt.regret[-1] <= least + 1e-9)


def fit_beta(prediction: Float[np.ndarray, "seen heads"], target: Exchangeable) -> BetaFit:
    """Fit Beta(a, b) to a table of P(next = heads) after `seen` tokens, `heads` of them heads (NaN: never visited).

    Minimises the sum over steps of E_target[KL(prediction || (a + heads) / (a + b + seen))] by exact sums over counts;
    a + b is searched up to 1e6, where the predictor is as good as a known coin. Raises ValueError for other than coins
    and for a table with nothing in it.
    """
    _check_coins(target=target)
    prediction = np.asarray(prediction, np.float64)
    steps, counts, probs = _outcomes(target, len(prediction))
    p, weight = prediction[steps, counts[:, 0]], probs.sum(1)
    there = np.isfinite(p) & (weight > 0)
    if not there.any():
        raise ValueError("prediction = NaN wherever the target leads: at least one prediction")
    p, weight, steps, heads = p[there], weight[there], steps[there], counts[there, 0]
    weight = weight / np.bincount(steps, weights=weight)[steps]  # within each step: what was visited

    def misfit(x):  # x: logit of the mean a / (a + b), log of the strength a + b
        strength = np.exp(x[1])
        q = (strength * expit(x[0]) + heads) / (strength + steps)
        return float(weight @ (rel_entr(p, q) + rel_entr(1 - p, 1 - q)))

    middle = logit(np.clip(weight @ p / weight.sum(), 1e-5, 1 - 1e-5))
    box = [(-12.0, 12.0), (np.log(1e-3), np.log(1e6))]
    found = [minimize(misfit, (middle, np.log(strength)), bounds=box) for strength in (2.0, 30.0, 1000.0)]
    best = min(found, key=lambda result: result.fun)
    mean, strength = expit(best.x[0]), np.exp(best.x[1])
    return BetaFit(float(strength * mean), float(strength * (1 - mean)), float(best.fun))


def quantiles(values, axis: int = 0) -> Quantiles:
    """Return the 25%, 50% and 75% quantiles over `axis` (repetitions)."""
    return Quantiles(*np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75], axis=axis))


def _outcomes(target: Exchangeable, length: int):
    """What may precede a token: its step m (T,), counts (T, 2), and P(these counts, then the token) (T, 2)."""
    steps, heads = np.tril_indices(length)  # m = 0..length - 1, heads = 0..m
    counts = np.stack([heads, steps - heads], axis=-1)
    log_sequences = gammaln(steps + 1) - gammaln(counts + 1).sum(-1)  # how many orders these counts have
    log_probs = (log_sequences + target.log_evidence(counts))[:, None] + target.predictive_log_probs(counts)
    return steps, counts, np.exp(log_probs)


def _regret_after(predictor, prompt, steps, counts, probs, entropy):
    log_probs = predictor.predictive_log_probs(counts + prompt)
    loss = -(probs * np.where(probs > 0, log_probs, 0)).sum(-1)  # what never happens costs nothing, even -log 0
    return np.cumsum(np.bincount(steps, weights=loss) - entropy)


def _check_coins(**sources) -> None:
    for name, source in sources.items():
        if not isinstance(source, Exchangeable) or source.num_tokens != 2:
            raise ValueError(f"{name} = {source}: an exchangeable source of 2 tokens")


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} = {value}: an integer >= {least}")
