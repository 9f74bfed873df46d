"""Every tuning method is a reparametrisation: what is learned, and how it enters the frozen model.

The loss is always nll(predictor.apply(*tuner.inject(base, phi), tokens)), differentiated in phi alone. Pretraining is
FullWT from random weights.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError
from bayesprompt.devices import SHARED_OUT, WHOLE, gather, make_mesh, padded, part_size, spread
from bayesprompt.models.predictor import LSTM, Architecture, Params, Predictor
from bayesprompt.models.prefixes import (
    NO_PREFIX,
    Prefix,
    all_hard_prefixes,
    check_prefix_length,
    random_hard_prefix,
)


class Tuner(NamedTuple):
    """A tuning method.

    init(key, base) -> phi: the learned arrays at the start.
    inject(base, phi) -> (params, prefix): the model that phi stands for.
    """

    init: Callable[[Array, Params], Any]
    inject: Callable[[Params, Any], tuple[Params, Prefix]]


# What a prefix method learns becomes rows in token space (as they are, or through a softmax) or in embedding space.
PREFIXES = {
    "SimplexPT": lambda phi: Prefix(inputs=jax.nn.softmax(phi)),
    "RealPT": lambda phi: Prefix(inputs=phi),
    "SoftPT": lambda phi: Prefix(embeddings=phi),
}
# What a weight method learns is a part of the parameters.
PARTS = {
    "EmbedWT": ("embedding",),
    "UnembedWT": ("unembedding",),
    "Un+EmbedWT": ("embedding", "unembedding"),
    "FullWT": ("embedding", "torso", "unembedding"),
}
# The dense layers that LoRA runs beside, in every block.
LORA_LAYERS = ("query", "key", "value", "attention_output")

PREFIX_METHODS = ("HardPT", *PREFIXES)
WEIGHT_METHODS = (*PARTS, "LoRAWT")
METHODS = (*PREFIX_METHODS, *WEIGHT_METHODS)


@functools.lru_cache
def make_tuner(
    method: str,
    architecture: Architecture,
    prefix_length: int = 6,
    rank: int = 4,
    beside: tuple[str, ...] = LORA_LAYERS,
) -> Tuner:
    """Return a gradient tuner (Section 4.1); PrefixTuning learns rows for every layer (Petrov et al. 2024, Eq. 5).

    LoRAWT runs factors of this rank beside the dense layers `beside` of every block.

    Raises ValueError for an unknown method, LoRA on an LSTM, prefix_length < 1 or rank < 1.
    """
    if method in PREFIXES:
        check_prefix_length(prefix_length)
        width = architecture.embed_dim if method == "SoftPT" else architecture.num_tokens
        return Tuner(
            init=lambda key, base: random_hard_prefix(key, prefix_length, width),
            inject=lambda base, phi: (base, PREFIXES[method](phi)),
        )
    if method == "PrefixTuning":
        check_prefix_length(prefix_length)
        shape = (architecture.num_layers, prefix_length, architecture.embed_dim)
        return Tuner(
            init=lambda key, base: jax.random.normal(key, shape),
            inject=lambda base, phi: (base, Prefix(layers=phi)),
        )
    if method in PARTS:
        return Tuner(
            init=lambda key, base: {part: base[part] for part in PARTS[method]},
            inject=lambda base, phi: ({**base, **phi}, NO_PREFIX),
        )
    if method == "LoRAWT":
        if isinstance(architecture, LSTM):
            raise UserError("method = LoRAWT: needs architecture transformer, whose attention layers it runs beside")
        if rank < 1:
            raise UserError(f"rank = {rank}: must be >= 1")
        return Tuner(init=functools.partial(_lora_init, rank, beside), inject=_lora_inject)
    gradient_methods = ", ".join([*PREFIXES, *PARTS, "LoRAWT", "PrefixTuning"])
    raise UserError(f"method = {method}: must be one of {gradient_methods} (HardPT is a search: hard_search)")


def _lora_init(rank: int, beside: tuple[str, ...], key: Array, base: Params) -> Params:
    """Start at W + A @ B with B = 0, so that nothing has changed yet (Hu et al. 2021)."""
    draw = jax.nn.initializers.lecun_normal()
    phi = {}
    for i, block in enumerate(base["torso"]):
        keys = jax.random.split(jax.random.fold_in(key, i), len(beside))
        shapes = {name: base["torso"][block][name]["kernel"].shape for name in beside}
        phi[block] = {
            name: {"A": draw(k, (rows, rank)), "B": jnp.zeros((rank, columns))}
            for k, (name, (rows, columns)) in zip(keys, shapes.items(), strict=True)
        }
    return phi


def _lora_inject(base: Params, phi: Params) -> tuple[Params, Prefix]:
    torso = {
        block: {
            **layers,
            **{n: layers[n] | {"kernel": layers[n]["kernel"] + f["A"] @ f["B"]} for n, f in phi[block].items()},
        }
        for block, layers in base["torso"].items()
    }
    return {**base, "torso": torso}, NO_PREFIX


class HardSearch(NamedTuple):
    """The best hard prefix and the score of all.

    prefix: (L,) tokens with the smallest loss (the first of equals).
    loss: (K**L,) mean cumulative log-loss of each prefix on the sequences, nats.
    """

    prefix: Int[np.ndarray, " L"]
    loss: Float[np.ndarray, " prefixes"]


def hard_search(predictor: Predictor, params: Params, prefix_length: int, tokens: Int[Array, "B N"]) -> HardSearch:
    """Score all K**L hard prefixes on the same sequences (HardPT, Eq. 7); each prefix is read once.

    Raises ValueError for L < 1 or more than 2**16 prefixes.
    """
    prefixes = all_hard_prefixes(prefix_length, predictor.architecture.num_tokens)
    mesh = make_mesh(len(prefixes), 1)
    filled = np.resize(prefixes, (padded(len(prefixes), mesh.shape["repetition"]), prefix_length))
    parts = tokens.reshape(-1, part_size(len(tokens), predictor.sequences_in_cache), tokens.shape[1])
    loss = gather(_score(predictor, mesh, jax.device_get(params), filled, np.asarray(parts)))[: len(prefixes)]
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
