"""How much worse than the best: log-loss, regret on sampled sequences, and exact regret by sums over counts.

Sampled regret takes any predictor's log-probabilities; exact regret needs exchangeable coins, for which a sequence
matters only through its heads and tails. Letters in shapes: B sequences, N length, K tokens. All numbers are in nats.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import gammaln, xlogy

from bayesprompt.checks import Counts, UserError, check_counts, check_integer, check_tokens
from bayesprompt.sources.coins import Exchangeable

LogProbs = Float[np.ndarray | Array, "B N K"]


class Regret(NamedTuple):
    """Cumulative regret R(n), n = 1..N, averaged over sequences."""

    mean: Float[np.ndarray, " N"]
    stderr: Float[np.ndarray, " N"]  # standard error of that mean; NaN for a single sequence


class HardPrompt(NamedTuple):
    """The best prompt of L tokens, as far as an exchangeable predictor can tell prompts apart."""

    counts: tuple[int, int]  # heads and tails in the prompt
    regret: Float[np.ndarray, " N"]  # exact R(n), n = 1..N, after it


class Quantiles(NamedTuple):
    """Median and quartiles over repetitions."""

    q25: np.ndarray | np.floating
    median: np.ndarray | np.floating
    q75: np.ndarray | np.floating


def log_loss(log_probs: LogProbs, tokens: Int[np.ndarray | Array, "B N"]) -> Float[np.ndarray, "B N"]:
    """Return -log p(x_n) (the summands of Eq. 3) in float64; raises UserError for tokens outside the alphabet."""
    log_probs = np.asarray(log_probs, np.float64)
    tokens = check_tokens(tokens, log_probs.shape[-1])
    if tokens.shape != log_probs.shape[:-1]:
        raise UserError(f"tokens = array of shape {tokens.shape}: must be {log_probs.shape[:-1]}, that of log_probs")
    return -np.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def cumulative_regret(
    log_probs: LogProbs, tokens: Int[np.ndarray | Array, "B N"], oracle_log_probs: LogProbs
) -> Regret:
    """Return R(n), n = 1..N, of Eq. 10: excess log-loss over the oracle that knows tau, summed over steps 1..n.

    Raises UserError where the oracle gives a token probability 0: the token came up, so this is not its oracle.
    """
    return _excess(log_probs, tokens, oracle_log_probs, "oracle_log_probs")


def excess_log_loss(log_probs: LogProbs, tokens: Int[np.ndarray | Array, "B N"], bayes_log_probs: LogProbs) -> Regret:
    """Return the Bayes regret (Eq. 4 up to step n): the same over the best predictor that does not know tau."""
    return _excess(log_probs, tokens, bayes_log_probs, "bayes_log_probs")


def _excess(log_probs, tokens, reference, name) -> Regret:
    reference_loss = log_loss(reference, tokens)
    if not np.isfinite(reference_loss).all():
        worst = -reference_loss[~np.isfinite(reference_loss)][0]
        raise UserError(f"{name} = {worst} at a token that came up: must be a finite log-probability")
    excess = np.cumsum(log_loss(log_probs, tokens) - reference_loss, axis=1)
    if len(excess) == 1:
        return Regret(excess[0], np.full_like(excess[0], np.nan))
    with np.errstate(invalid="ignore"):  # a mean of inf has no standard error: NaN
        return Regret(excess.mean(axis=0), excess.std(axis=0, ddof=1) / np.sqrt(len(excess)))


def exact_regret(
    predictor: Exchangeable, target: Exchangeable, length: int, prompt_counts: Counts = (0, 0)
) -> Float[np.ndarray, "{length}"]:
    """Return the expected R(n) (Eq. 10), n = 1..length, on `target`, of a coin predictor behind `prompt_counts`.

    R(n) = sum_{m < n} sum_k P(k heads in m) sum_x P(x | k, m) (-log q(x | k, m, prompt)) - n E_tau[H(tau)]; inf where
    the predictor rules out what may happen. Memory grows as length ** 2. Raises UserError for other than coins.
    """
    check_coins(predictor=predictor, target=target)
    check_integer("length", length, 1)
    prompt = check_counts(prompt_counts, 2, "prompt_counts")
    steps, counts, probs = outcomes(target, length)
    return regret_after(predictor, prompt, steps, counts, probs, target.mean_entropy())


def exact_stderr(
    predictor: Exchangeable, target: Exchangeable, n: int, sequences: int, prompt_counts: Counts = (0, 0)
) -> float:
    """Return the standard error of a mean of R(n) over that many `sequences` of finitely many coins, in closed form.

    A sequence's excess log-loss depends on its coin and its number of heads only. Raises UserError for other than
    coins, and for a target whose coins are not finitely many.
    """
    check_coins(predictor=predictor, target=target)
    check_integer("n", n, 1)
    components, weights = (getattr(target, name, None) for name in ("components", "weights"))
    if components is None or weights is None:
        raise UserError(f"target = {target}: must be one of finitely many coins")
    prompt, heads = check_counts(prompt_counts, 2, "prompt_counts"), np.arange(n + 1)
    counts = np.stack([heads, n - heads], axis=-1)
    log_orders = gammaln(n + 1) - gammaln(counts + 1).sum(-1)
    loss = predictor.log_evidence(prompt) - predictor.log_evidence(counts + prompt)
    probs = np.asarray(components)[:, None, :]
    log_likelihood = xlogy(counts, probs).sum(-1)  # (C, n + 1): of one sequence with these counts
    weight = np.asarray(weights)[:, None] * np.exp(log_orders + log_likelihood)
    excess = np.where(weight > 0, loss + log_likelihood, 0)
    mean = (weight * excess).sum()
    return float(np.sqrt((weight * (excess - mean) ** 2).sum() / sequences))


def best_hard_prompt(predictor: Exchangeable, target: Exchangeable, prefix_length: int, length: int) -> HardPrompt:
    """Search all compositions of exactly `prefix_length` tokens for the least exact R(length) (Eq. 7-9).

    Of prompts within 1e-9 nats of the best, the one with fewest heads. Raises UserError as `exact_regret` does.
    """
    check_coins(predictor=predictor, target=target)
    check_integer("prefix_length", prefix_length, 0)
    check_integer("length", length, 1)
    given = (*outcomes(target, length), target.mean_entropy())
    prompts = [(heads, prefix_length - heads) for heads in range(prefix_length + 1)]
    found = [HardPrompt(prompt, regret_after(predictor, np.asarray(prompt), *given)) for prompt in prompts]
    least = min(prompt.regret[-1] for prompt in found)
    return next(prompt for prompt in found if prompt.regret[-1] <= least + 1e-9)


def quantiles(values, axis: int = 0) -> Quantiles:
    """Return the 25%, 50% and 75% quantiles over `axis` (repetitions)."""
    return Quantiles(*np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75], axis=axis))


def outcomes(target: Exchangeable, length: int):
    """Return what may precede a token: its step m (T,), counts (T, 2), and P(these counts, then the token) (T, 2)."""
    steps, heads = np.tril_indices(length)  # m = 0..length - 1, heads = 0..m
    counts = np.stack([heads, steps - heads], axis=-1)
    log_sequences = gammaln(steps + 1) - gammaln(counts + 1).sum(-1)  # how many orders these counts have
    log_probs = (log_sequences + target.log_evidence(counts))[:, None] + target.predictive_log_probs(counts)
    return steps, counts, np.exp(log_probs)


def regret_after(predictor: Exchangeable, prompt: np.ndarray, steps, counts, probs, entropy: float) -> np.ndarray:
    """Return the exact R(n) after a prompt's counts (2,), given `outcomes` and the target's mean entropy."""
    log_probs = predictor.predictive_log_probs(counts + prompt)
    loss = -(probs * np.where(probs > 0, log_probs, 0)).sum(-1)  # what never happens costs nothing, even -log 0
    return np.cumsum(np.bincount(steps, weights=loss) - entropy)


def check_coins(**sources: Any) -> None:
    """Raise UserError naming the argument unless each is an exchangeable source of two tokens."""
    for name, source in sources.items():
        if not isinstance(source, Exchangeable) or source.num_tokens != 2:
            raise UserError(f"{name} = {source}: must be an exchangeable source of 2 tokens")
