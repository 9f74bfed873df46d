"""What a network carries from token to token: its internal states, and the few directions in which they vary most."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.stats import spearmanr

from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.experiment import Cell
from bayesprompt.measures.components import Components, States, principal_components, project
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.trace import inspect
from bayesprompt.prompting.experiments import RANDOM_COINS, CoinExperiment
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import PREFIX_METHODS, prefix_from_rows

# Claim G15: how many random-coin sequences of how many steps span the state space, from which step on their order is
# measured, and on how many held-out sequences (the test leaves that open: so many that drawing others hardly matters).
SEQUENCES, STEPS, FIRST_STEP, HELD_OUT = 100, 50, 10, 400


class Visited(NamedTuple):
    """States that random coins visit: at step n, before token n.

    states: (B, N, S). step: (B, N), n = 1..N. heads: (B, N) share of heads among the n - 1 tokens seen; NaN for n = 1.
    """

    states: Float[np.ndarray, "B N S"]
    step: Int[np.ndarray, "B N"]
    heads: Float[np.ndarray, "B N"]


class Ordering(NamedTuple):
    """How the first two components of random-coin states go with the step n and with the share of heads (claim G15).

    visited: the states that span the space. components: theirs.
    step_component, heads_component: which of them (0 or 1) is paired with n, and which with the share of heads.
    step_correlation, heads_correlation: Spearman's on held-out sequences from step 10 on, with their signs.
    """

    visited: Visited
    components: Components
    step_component: int
    heads_component: int
    step_correlation: float
    heads_correlation: float


def internal_states(
    predictor: Predictor, params: Params, tokens: Int[Array | np.ndarray, "B N"], prefix: Prefix = NO_PREFIX
) -> Float[np.ndarray, "B rows S"]:
    """Return the internal states (Section 4.1) of each row: start vector, L prefix rows, N - 1 tokens.

    Those of several layers lie side by side, S = num_layers * width. Row L + n - 1 (from 0) is step n.
    """
    layers = inspect(predictor, params, tokens, prefix).layers
    return np.concatenate([np.asarray(layer.states) for layer in layers], axis=-1)


def random_coin_states(
    predictor: Predictor, params: Params, key: Array, sequences: int = SEQUENCES, steps: int = STEPS
) -> Visited:
    """Return the states that a network (of two tokens) visits on random coins, without a prefix."""
    tokens = np.asarray(RANDOM_COINS.sample(key, sequences, steps)[0])
    states = np.asarray(internal_states(predictor, params, tokens), np.float64)
    seen = np.broadcast_to(np.arange(steps), tokens.shape)
    heads = np.cumsum(tokens == 0, axis=1) - (tokens == 0)
    share = np.divide(heads, seen, out=np.full(tokens.shape, np.nan), where=seen > 0)
    return Visited(states, seen + 1, share)


def ordering(predictor: Predictor, params: Params, key: Array) -> Ordering:
    """Fit the components on 100 x 50 random-coin states, and correlate the first two with n and with the heads (G15).

    Of the two ways to pair components with quantities, that whose weaker correlation is stronger.
    """
    sampled = random_coin_states(predictor, params, key, SEQUENCES + HELD_OUT)
    visited, held_out = (Visited(*(x[part] for x in sampled)) for part in (np.s_[:SEQUENCES], np.s_[SEQUENCES:]))
    components = principal_components(visited.states)
    late = np.s_[:, FIRST_STEP - 1 :]
    scores = project(components, held_out.states[late])
    found = np.array(
        [[spearmanr(scores[..., c].ravel(), x[late].ravel())[0] for x in held_out[1:]] for c in (0, 1)]
    )  # [component, step or heads]
    step = max((0, 1), key=lambda c: min(abs(found[c, 0]), abs(found[1 - c, 1])))
    return Ordering(visited, components, step, 1 - step, float(found[step, 0]), float(found[1 - step, 1]))


def plane(order: Ordering, states: States) -> Float[np.ndarray, "*batch 2"]:
    """Return where states lie in the plane of the first two components, turned: heads to the right, later steps up."""
    scores = project(order.components, states)[..., [order.heads_component, order.step_component]]
    return scores * np.sign([order.heads_correlation, order.step_correlation])


def tuned_prefixes(
    store: Store, experiment: CoinExperiment, architecture: str, scale: str = "paper"
) -> dict[str, list[Prefix] | None]:
    """Return each prefix method's prefixes, one a repetition, and the empty one; None where a cell is missing."""
    prefixes: dict[str, list[Prefix] | None] = {"NoTuning": [NO_PREFIX]}
    for method in PREFIX_METHODS:
        cell = load_cell(Cell(experiment, architecture, method, scale), store)
        prefixes[method] = None if cell is None else [prefix_from_rows(method, rows) for rows in cell.prefix.values]
    return prefixes
