"""A mixture that a short program can prompt exactly: first a program that names a prior, then data of that prior.

The mixture runs over *all* programs of `programs`, infinitely many, each with weight 2 ** -bits: nothing is cut off.
The weights sum to KRAFT < 1, but every prediction is a ratio of two evidences, and so sums to 1 over all futures.
Genewein et al. (2025), Appendix E, "Countable mixtures". F = 2 ** horizon futures count upwards in binary.
"""

import math

import numpy as np
from jaxtyping import Float

from bayesprompt.checks import UserError, check_integer
from bayesprompt.theory.programs import NamedPrior, Tokens, as_bits, decode, fault, marginal, parse, shown

MAX_HORIZON = 12


def log_evidence(tokens: Tokens) -> float:
    """Return log xi(x), nats, of the mixture over all programs; it is -inf for a string that begins no program.

    Where x ends inside a program, the sum over all programs that begin so has a closed form: see KRAFT.
    """
    bits = as_bits(tokens)
    prior, position, weight = parse(bits)
    if prior is not None:
        weight = marginal(prior, bits.count("0", position), bits.count("1", position))
    if weight == 0:
        return -math.inf
    numerator, denominator = weight.as_integer_ratio()  # a fraction may lie far below the smallest float
    return math.log(numerator) - math.log(denominator) - position * math.log(2)


def conditional(prompt: Tokens, tokens: Tokens) -> float:
    """Return xi(x | y), the probability of `tokens` x after `prompt` y; ValueError for a prompt of evidence 0."""
    prompt = as_bits(prompt, "prompt")
    return math.exp(log_evidence(prompt + as_bits(tokens)) - _log_evidence_of_prompt(prompt))


def futures(prompt: Tokens, horizon: int) -> Float[np.ndarray, " F"]:
    """Return xi(x | prompt) for all futures x of `horizon` (1 to 12) tokens; ValueError as in `conditional`."""
    prompt = as_bits(prompt, "prompt")
    check_integer("horizon", horizon, 1, MAX_HORIZON)
    before = _log_evidence_of_prompt(prompt)
    return np.exp([log_evidence(prompt + bits) - before for bits in _strings(horizon)])


def total_variation(futures: Float[np.ndarray, " F"], prior: NamedPrior) -> float:
    """Return half the sum over all x of |futures(x) - zeta_w(x)|: 0 if they are alike, 1 if they share nothing.

    What the futures lack to a sum of 1 counts as one more outcome. Raises ValueError unless there are 2 ** horizon.
    """
    horizon = len(futures).bit_length() - 1
    if len(futures) != 2**horizon:
        raise UserError(f"futures = array of shape {futures.shape}: must have 2 ** horizon entries")
    each = [float(marginal(prior, heads, horizon - heads)) for heads in range(horizon + 1)]
    target = [each[bits.count("0")] for bits in _strings(horizon)]
    return 0.5 * float(abs(futures - target).sum() + abs(1 - futures.sum()))


def posterior(begin: Tokens, program: str) -> float:
    """Return P(the program is `program` | the bits read so far, `begin`); ValueError for a `begin` of evidence 0."""
    begin = as_bits(begin, "begin")
    if decode(program)[1]:
        raise UserError(f"program = {shown(program)}: must be a program and nothing after it")
    _log_evidence_of_prompt(begin, "begin")  # refuses evidence 0
    if program.startswith(begin):
        return 0.5 ** (len(program) - len(begin)) / parse(begin)[2]
    return float(begin.startswith(program))  # nothing but its own program comes before data


def _log_evidence_of_prompt(prompt: str, name: str = "prompt") -> float:
    before = log_evidence(prompt)
    if before == -math.inf:
        raise UserError(f"{name} = {shown(prompt)}: must have evidence > 0; this {fault(prompt)}")
    return before


def _strings(length: int) -> list[str]:
    return [format(number, f"0{length}b") for number in range(2**length)]
