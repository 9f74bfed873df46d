"""A mixture that a short program can prompt exactly: first a program that names a prior, then data of that prior.

The mixture runs over *all* programs of `programs`, infinitely many, each with weight 2 ** -bits: nothing is cut off.
The weights sum to KRAFT < 1, but every prediction is a ratio of two evidences, and so sums to 1 over all futures.
Genewein et al. (2025), Appendix E, "Countable mixtures". F = 2 ** horizon futures count upwards in binary.
"""

import math

import numpy as np
from jaxtyping import Float

from bayesprompt.checks import UserError, check_integer
from bayesprompt.theory.bernoulli import Prior
from bayesprompt.theory.programs import (
    NamedPrior,
    Tokens,
    as_bits,
    as_prior,
    decode,
    fault,
    marginal,
    parse,
    programs,
    random_program,
    shown,
)

MAX_HORIZON = 12


def log_evidence(tokens: Tokens) -> float:
    """log xi(x), nats, of the mixture over all programs; -inf for a string that begins no program.

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
    """xi(x | y): probability of `tokens` x after `prompt` y. ValueError for a prompt of evidence 0."""
    prompt = as_bits(prompt, "prompt")
    return math.exp(log_evidence(prompt + as_bits(tokens)) - _log_evidence_of_prompt(prompt))


def futures(prompt: Tokens, horizon: int) -> Float[np.ndarray, " F"]:
    """xi(x | prompt) for all futures x of `horizon` (1 to 12) tokens. ValueError for a prompt of evidence 0."""
    prompt = as_bits(prompt, "prompt")
    check_integer("horizon", horizon, 1, MAX_HORIZON)
    before = _log_evidence_of_prompt(prompt)
    return np.exp([log_evidence(prompt + bits) - before for bits in _strings(horizon)])


def total_variation(futures: Float[np.ndarray, " F"], prior: NamedPrior) -> float:
    """Half the sum over all x of |futures(x) - zeta_w(x)|: 0 is alike, 1 is nothing in common.

    What the futures lack to a sum of 1 counts as one more outcome. ValueError unless there are 2 ** horizon of them.
    """
    horizon = len(futures).bit_length() - 1
    if len(futures) != 2**horizon:
        raise UserError(f"futures = array of shape {futures.shape}: 2 ** horizon of them")
    each = [float(marginal(prior, heads, horizon - heads)) for heads in range(horizon + 1)]
    target = [each[bits.count("0")] for bits in _strings(horizon)]
    return 0.5 * float(abs(futures - target).sum() + abs(1 - futures.sum()))


def posterior(begin: Tokens, program: str) -> float:
    """P(the program is `program`) for who has read `begin`. ValueError if that has evidence 0."""
    begin = as_bits(begin, "begin")
    if decode(program)[1]:
        raise UserError(f"program = {shown(program)}: a program and nothing after it")
    _log_evidence_of_prompt(begin)  # refuses evidence 0
    if program.startswith(begin):
        return 0.5 ** (len(program) - len(begin)) / parse(begin)[2]
    return float(begin.startswith(program))  # nothing but its own program comes before data


def belief(begin: Tokens, more_bits: int = 10) -> tuple[Prior, float]:
    """What is believed about the coin after `begin` of a program: the average over the programs that may still come.

    Over those of at most `more_bits` (0 to 16) more; the second number is their share of the posterior. ValueError if
    there are none.
    """
    begin = as_bits(begin, "begin")
    _log_evidence_of_prompt(begin)
    found = programs(len(begin) + more_bits, begin)
    if not found:
        raise UserError(f"more_bits = {more_bits}: enough for a program that begins with {shown(begin)}")
    shares = np.array([posterior(begin, program) for program in found])
    priors = [as_prior(decode(program)[0]) for program in found]
    return Prior.mixture(priors, shares / shares.sum()), float(shares.sum())


def identity_error(num_programs: int = 50, length: int = 6) -> float:
    """Largest |xi(x | p) - zeta_w(x)| over random programs p, each of its prior w, and all x of at most `length` bits.

    The left side is the mixture over programs, the right side `bernoulli.Prior` in floating point.
    """
    check_integer("num_programs", num_programs, 1)
    check_integer("length", length, 1, MAX_HORIZON)
    strings = [bits for n in range(1, length + 1) for bits in _strings(n)]
    counts, worst = np.array([(bits.count("0"), bits.count("1")) for bits in strings]), 0.0
    for program in map(random_program, range(num_programs)):
        mixture = np.array([conditional(program, bits) for bits in strings])
        target = np.exp(as_prior(decode(program)[0]).log_evidence(counts))
        worst = max(worst, float(abs(mixture - target).max()))
    return worst


def _log_evidence_of_prompt(prompt: str) -> float:
    before = log_evidence(prompt)
    if before == -math.inf:
        raise UserError(f"prompt = {shown(prompt)}: one of evidence > 0; this {fault(prompt)}")
    return before


def _strings(length: int) -> list[str]:
    return [format(number, f"0{length}b") for number in range(2**length)]
