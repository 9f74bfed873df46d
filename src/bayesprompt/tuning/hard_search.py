"""HardPT: tokens have no gradient, so the best prompt of L tokens is searched among all K**L, or descended to."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from bayesprompt.checks import check_integer, check_tokens
from bayesprompt.devices import SHARED_OUT, WHOLE, gather, make_mesh, padded, spread
from bayesprompt.models.predictor import Params, Predictor, in_parts
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
    loss = gather(_score(predictor, mesh, jax.device_get(params), filled, in_parts(predictor, tokens)))[: len(prefixes)]
    return HardSearch(prefixes[int(np.argmin(loss))], loss)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(predictor: Predictor, mesh: Mesh, params: Params, prefixes: Array, parts: Array) -> Array:
    score_share = functools.partial(_losses, predictor)
    return spread(score_share, mesh, WHOLE, WHOLE, SHARED_OUT)(params, parts, prefixes)


class CoordinateSearch(NamedTuple):
    """The best hard prefix that coordinate descent found, and the loss of the best one of each length.

    prefix: (l,) tokens with the smallest loss, l <= L (the shortest of equals; l = 0: no prefix was better).
    loss: (L + 1,) mean cumulative log-loss on the sequences of the best prefix found of length 0..L, nats.
    """

    prefix: Int[np.ndarray, " l"]
    loss: Float[np.ndarray, " lengths"]


@fixed()
def coordinate_search(
    predictor: Predictor,
    params: Params,
    longest: int,
    tokens: Int[Array | np.ndarray, "B N"],
    candidates: int = 16,
    sweeps: int = 1,
) -> CoordinateSearch:
    """Search hard prefixes of up to `longest` tokens by coordinate descent, for vocabularies that no search exhausts.

    The best prefix found of a length, with its last token once more, starts the next length; the first length starts
    from the sequences' first token. A sweep goes through the places from the last to the first; at each, the
    `candidates` tokens with the least loss to first order (Ebrahimi et al. 2018, HotFlip) are read in its place, and
    the best replaces it if it is better: within a length the loss never rises. Sweeps end early where one changes
    nothing. With as many candidates as tokens a place is searched exhaustively.

    Raises ValueError for longest, candidates or sweeps < 1, and for tokens or parameters of another alphabet.
    """
    check_integer("longest", longest, 1)
    check_integer("candidates", candidates, 1)
    check_integer("sweeps", sweeps, 1)
    check_network(predictor, params)
    tokens = check_tokens(tokens, predictor.architecture.num_tokens)
    given = predictor, params, in_parts(predictor, tokens)
    prefix = np.zeros(0, np.int32)
    found, losses = [prefix], [float(_losses(*given, prefix[None])[0])]
    for length in range(1, int(longest) + 1):
        prefix = np.append(prefix, prefix[-1:] if length > 1 else tokens[0, :1]).astype(np.int32)
        loss = float(_losses(*given, prefix[None])[0])
        for _ in range(sweeps):
            before = loss
            for place in range(length - 1, -1, -1):
                slopes = np.asarray(_slopes(*given, prefix))[place]
                tried = np.tile(prefix, (min(candidates, len(slopes)), 1))
                tried[:, place] = np.argsort(slopes, kind="stable")[: len(tried)]
                each = np.asarray(_losses(*given, tried))
                if each.min() < loss:
                    prefix, loss = tried[each.argmin()], float(each.min())
            if loss == before:
                break
        found.append(prefix)
        losses.append(loss)
    return CoordinateSearch(found[int(np.argmin(losses))], np.array(losses))


def mean_loss(predictor: Predictor, params: Params, prefix: Prefix, parts: Int[Array, "P S N"]) -> Float[Array, ""]:
    """Return the mean cumulative log-loss, nats, of the sequences of P parts behind a prefix."""
    state = predictor.prompt(params, prefix, parts.shape[-1])
    return jax.lax.map(lambda part: predictor.token_losses(params, state, part).sum(1).mean(), parts).mean()


@functools.partial(jax.jit, static_argnums=0)
def _losses(predictor: Predictor, params: Params, parts: Array, prefixes: Array) -> Array:
    def one(prefix):
        rows = jax.nn.one_hot(prefix, predictor.architecture.num_tokens)
        return mean_loss(predictor, params, Prefix(inputs=rows), parts)

    return jax.lax.map(one, prefixes)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(predictor: Predictor, params: Params, parts: Array, prefix: Array) -> Array:
    """Return the derivative (L, K) of the loss in every token's share of every place, a part at a time."""
    rows = jax.nn.one_hot(prefix, predictor.architecture.num_tokens)
    one = jax.grad(lambda rows, part: mean_loss(predictor, params, Prefix(inputs=rows), part[None]))
    return jax.lax.map(functools.partial(one, rows), parts).mean(0)
