"""What a network carries from token to token: its internal states, and the few directions in which they vary most."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from bayesprompt.checks import UserError
from bayesprompt.lab.cells import Cell, load_cell
from bayesprompt.models.lstm import LSTM, gate_weights, lstm_step
from bayesprompt.models.predictor import Network, Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.transformer import attend, sinusoids
from bayesprompt.prompting.experiments import RANDOM_COINS
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import PREFIX_METHODS, prefix_from_rows

# Claim G15: how many random-coin sequences of how many steps span the state space, from which step on their order is
# measured, and on how many held-out sequences (the test leaves that open: so many that drawing others hardly matters).
SEQUENCES, STEPS, FIRST_STEP, HELD_OUT = 100, 50, 10, 400
# Distances are measured in the components that hold this share of the variance: the last ones hold rounding errors.
SHARE = 0.999

States = Float[np.ndarray | Array, "*batch S"]


class Trace(NamedTuple):
    """A network read row by row: the start vector, L prefix rows, N - 1 tokens; row L + n - 1 (from 0) is step n.

    states: (B, L + N, S) internal states (Section 4.1): the LSTM's cell state, or what the Transformer's attention
        block adds to the residual stream; of several layers side by side, S = num_layers * width.
    log_probs: (B, N, K) log pi(x_n = . | s_1:L, x_<n), nats, the same as `Predictor.apply` returns.
    """

    states: Float[Array, "B rows S"]
    log_probs: Float[Array, "B N K"]


class Visited(NamedTuple):
    """States that random coins visit: at step n, before token n.

    states: (B, N, S). step: (B, N), n = 1..N. heads: (B, N) share of heads among the n - 1 tokens seen; NaN for n = 1.
    """

    states: Float[np.ndarray, "B N S"]
    step: Int[np.ndarray, "B N"]
    heads: Float[np.ndarray, "B N"]


class Components(NamedTuple):
    """Principal components: `mean` (S,), orthonormal `axes` (C, S), and the `variance` (C,) along each, falling.

    An axis' largest entry in size is positive.
    """

    mean: Float[np.ndarray, " S"]
    axes: Float[np.ndarray, "C S"]
    variance: Float[np.ndarray, " C"]


class Ordering(NamedTuple):
    """How the first two components of random-coin states go with the step n and with the share of heads (claim G15).

    visited: the states that span the space. components: theirs.
    step, heads: which of the components (0 or 1) is paired with n, and which with the share of heads.
    step_correlation, heads_correlation: Spearman's on held-out sequences from step 10 on, with their signs.
    """

    visited: Visited
    components: Components
    step: int
    heads: int
    step_correlation: float
    heads_correlation: float


class Displacement(NamedTuple):
    """How far states are from those that random coins visit; one number a state.

    plane: Mahalanobis distance from the mean within the first two components, in standard deviations.
    distance: the same within all components that matter (99.9 % of the variance).
    outside: share of the squared distance from the mean that lies outside the first two components.
    """

    plane: Float[np.ndarray, "*batch"]
    distance: Float[np.ndarray, "*batch"]
    outside: Float[np.ndarray, "*batch"]


def internal_states(
    predictor: Predictor, params: Params, tokens: Int[Array | np.ndarray, "B N"], prefix: Prefix = NO_PREFIX
) -> Trace:
    """Read start vector, prefix and tokens row by row (the last token predicts nothing, and is not read).

    Raises ValueError for a prefix given layer by layer.
    """
    if prefix.layers is not None:
        raise UserError("prefix = layers: rows of input or of embedding, which are read one after the other")
    return _trace(predictor.architecture, params, prefix, jnp.asarray(tokens))


@functools.partial(jax.jit, static_argnums=0)
def _trace(architecture: Any, params: Params, prefix: Prefix, tokens: Array) -> Trace:
    return Network(architecture).apply({"params": params}, prefix, tokens, method=_read)


def _read(network: Network, prefix: Prefix, tokens: Array) -> Trace:
    """Run the network over explicit rows, the prompt's repeated for every sequence."""
    num_tokens = network.architecture.num_tokens
    rows = [network.embedding(jnp.zeros((1, num_tokens)))]
    rows += [network.embedding(prefix.inputs)] if prefix.inputs is not None else []
    rows += [prefix.embeddings] if prefix.embeddings is not None else []
    prompt, data = jnp.concatenate(rows), network.embedding(jax.nn.one_hot(tokens[:, :-1], num_tokens))
    x = jnp.concatenate([jnp.broadcast_to(prompt, (len(tokens), *prompt.shape)), data], axis=1)
    read = _read_lstm if isinstance(network.architecture, LSTM) else _read_transformer
    states, outputs = read(network.torso, x)
    log_probs = jax.nn.log_softmax(network.unembedding(outputs[:, len(prompt) - 1 :]))
    return Trace(jnp.concatenate(states, axis=-1), log_probs)


def _read_lstm(torso, x):
    def step(carry, gates, recurrent):
        (cell, hidden), _ = lstm_step(carry, gates, recurrent)
        return (cell, hidden), (cell, hidden)

    states, x = [], x.swapaxes(0, 1)
    for cell in torso.cells:
        kernel, recurrent, bias = gate_weights(cell)
        start = (jnp.zeros((x.shape[1], torso.architecture.hidden_dim)),) * 2
        _, (state, x) = jax.lax.scan(functools.partial(step, recurrent=recurrent), start, x @ kernel + bias[None, None])
        states.append(state.swapaxes(0, 1))
    return states, x.swapaxes(0, 1)


def _read_transformer(torso, x):
    states, x = [], x + sinusoids(*x.shape[1:])[None]
    for block in torso.blocks:
        query, key, value = block.project(x)
        attended = attend(query, key, value, (key[0, :0], value[0, :0]))
        states.append(block.attention_output(attended))
        x = block.finish(x, attended)
    return states, x


def random_coin_states(
    predictor: Predictor, params: Params, key: Array, sequences: int = SEQUENCES, steps: int = STEPS
) -> Visited:
    """Return the states that a network (of two tokens) visits on random coins, without a prefix."""
    tokens = np.asarray(RANDOM_COINS.sample(key, sequences, steps)[0])
    states = np.asarray(internal_states(predictor, params, tokens).states, np.float64)
    seen = np.broadcast_to(np.arange(steps), tokens.shape)
    heads = np.cumsum(tokens == 0, axis=1) - (tokens == 0)
    share = np.divide(heads, seen, out=np.full(tokens.shape, np.nan), where=seen > 0)
    return Visited(states, seen + 1, share)


def principal_components(states: States) -> Components:
    """Return all principal components of states (float64 SVD); raises ValueError for fewer than two states."""
    states = np.asarray(states, np.float64)
    rows = states.reshape(-1, states.shape[-1])
    if len(rows) < 2:
        raise UserError(f"states = array of shape {states.shape}: at least two states")
    mean = rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
    return Components(mean, axes * np.sign(largest), singular**2 / len(rows))


def project(components: Components, states: States, number: int = 2) -> Float[np.ndarray, "*batch number"]:
    """Return the coordinates of states along the first `number` components; raises ValueError if there are fewer."""
    if not 1 <= number <= len(components.axes):
        raise UserError(f"number = {number}: must lie in 1..{len(components.axes)}")
    return (np.asarray(states, np.float64) - components.mean) @ components.axes[:number].T


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
    scores = project(order.components, states)[..., [order.heads, order.step]]
    return scores * np.sign([order.heads_correlation, order.step_correlation])


def displacement(components: Components, states: States) -> Displacement:
    """Measure how far states are from the mean of those that the components are of, as these vary."""
    squares = project(components, states, len(components.axes)) ** 2
    share = np.cumsum(components.variance) / components.variance.sum()
    scaled = squares / components.variance
    return Displacement(
        plane=np.sqrt(scaled[..., :2].sum(-1)),
        distance=np.sqrt(scaled[..., : np.searchsorted(share, SHARE) + 1].sum(-1)),
        outside=squares[..., 2:].sum(-1) / squares.sum(-1),
    )


def nearest(states: States, visited: Float[np.ndarray | Array, "*visited S"]) -> Float[np.ndarray, "*batch"]:
    """Return the distance from each state to the nearest of those visited, divided by how far these are spread.

    The spread is their root-mean-square distance from their mean.
    """
    rows, among = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (states, visited))
    spread = np.sqrt(among.var(axis=0).sum())
    return (cdist(rows, among).min(axis=1) / spread).reshape(states.shape[:-1])


def tuned_prefixes(
    store: Store, experiment: str, architecture: str, scale: str = "paper"
) -> dict[str, list[Prefix] | None]:
    """Return each prefix method's prefixes, one a repetition, and the empty one; None where a cell is missing."""
    prefixes: dict[str, list[Prefix] | None] = {"NoTuning": [NO_PREFIX]}
    for method in PREFIX_METHODS:
        cell = load_cell(Cell(experiment, architecture, method, scale), store)
        found = [] if cell is None else [prefix_from_rows(method, rows) for rows in cell.prefix.values]
        prefixes[method] = found or None
    return prefixes


def states_after(
    predictor: Predictor,
    params: Params,
    prefixes: Sequence[Prefix],
    tokens: Int[Array | np.ndarray, "B N"],
    rows: int = STEPS,
) -> Float[np.ndarray, "B {rows} S"]:
    """Return the states of the first `rows` rows, prefix included: sequence i is read after prefix i modulo R.

    Raises ValueError where the tokens do not reach that far.
    """
    longest, parts = rows - min(prefix.length for prefix in prefixes), []
    if tokens.shape[1] < longest:
        raise UserError(f"rows = {rows}: at most {rows - longest + tokens.shape[1]}, prefix and tokens together")
    for r, prefix in enumerate(prefixes[: len(tokens)]):
        part = tokens[r :: len(prefixes), : rows - prefix.length]
        parts.append(np.asarray(internal_states(predictor, params, part, prefix).states, np.float64))
    states = np.empty((len(tokens), *parts[0].shape[1:]))
    for r, part in enumerate(parts):
        states[r :: len(prefixes)] = part
    return states
