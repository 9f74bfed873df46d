"""HardPT: tokens have no gradient, so the best prompt of L tokens is searched among all K**L."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from bayesprompt.checks import check_tokens
from bayesprompt.devices import SHARED_OUT, WHOLE, gather, make_mesh, padded, part_size, spread
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import Prefix, all_hard_prefixes
from bayesprompt.settings import fixed
from bayesprompt.tuning.accepted import check_network


class HardSearch(NamedTuple):
    """The best hard prefix, and the score of every one.

    prefix: (L,) tokens with the smallest loss (the first of equals).
    loss: (K**L,) mean cumulative log-loss of each prefix on the sequences, nats.
    """

    prefix: Int[np.ndarray, " L"]
    loss: Float[np.ndarray, " prefixes"]


@fixed()
def hard_search(
    predictor: Predictor, params: Params, prefix_length: int, tokens: Int[Array | np.ndarray, "B N"]
) -> HardSearch:
    """Score all K**L hard prefixes on the same sequences (HardPT, Eq. 7); each prefix is read once.

    Raises ValueError for L < 1, for more than 2**16 prefixes, and for tokens or parameters of another alphabet.
    """
    prefixes = all_hard_prefixes(prefix_length, predictor.architecture.num_tokens)
    check_network(predictor, params)
    tokens = check_tokens(tokens, predictor.architecture.num_tokens)
    mesh = make_mesh(len(prefixes), 1)
    filled = np.resize(prefixes, (padded(len(prefixes), mesh.shape["repetition"]), prefix_length))
    parts = tokens.reshape(-1, part_size(len(tokens), predictor.sequences_in_cache), tokens.shape[1])
    loss = gather(_score(predictor, mesh, jax.device_get(params), filled, parts))[: len(prefixes)]
    return HardSearch(prefixes[int(np.argmin(loss))], loss)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(predictor: Predictor, mesh: Mesh, params: Params, prefixes: Array, parts: Array) -> Array:
    def score(params, parts, prefix):
        rows = jax.nn.one_hot(prefix, predictor.architecture.num_tokens)
        state = predictor.prompt(params, Prefix(inputs=rows), parts.shape[-1])
        losses = jax.lax.map(lambda part: predictor.token_losses(params, state, part).sum(1).mean(), parts)
        return losses.mean()

    def score_share(params, parts, prefixes):
        return jax.lax.map(functools.partial(score, params, parts), prefixes)

    return spread(score_share, mesh, WHOLE, WHOLE, SHARED_OUT)(params, parts, prefixes)
