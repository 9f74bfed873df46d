"""Every tuning method is a reparametrisation: what is learned, and how it enters the frozen model.

The loss is always nll(predictor.apply(*tuner.inject(base, phi), tokens)), differentiated in phi alone. Pretraining is
FullWT from random weights.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesprompt.checks import UserError, check_integer
from bayesprompt.files import array_name
from bayesprompt.models.predictor import LSTM, Architecture, Params
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, check_prefix_length, random_hard_prefix


class Tuner(NamedTuple):
    """A tuning method: the start of what is learned, and the model that it stands for.

    init(key, base) -> phi: any tree of float arrays. `fit` calls it under vmap and shard_map, once for each repetition.
    inject(base, phi) -> (params, prefix): what the predictor reads. It is traced too, and differentiated in phi.
    name: how a checkpoint knows the method and its settings; without one, the two functions' names do.

    A compiled program belongs to the two functions: a Tuner made anew, of fresh lambdas, compiles anew.
    """

    init: Callable[[Array, Params], Any]
    inject: Callable[[Params, Any], tuple[Params, Prefix]]
    name: str = ""


# The field of `Prefix` that a method's rows fill: token space, embedding space, or every layer.
PREFIX_FIELDS = {
    "HardPT": "inputs",
    "SimplexPT": "inputs",
    "RealPT": "inputs",
    "SoftPT": "embeddings",
    "PrefixTuning": "layers",
}
# The parts of the parameters that a method learns.
PARTS = {
    "EmbedWT": ("embedding",),
    "UnembedWT": ("unembedding",),
    "Un+EmbedWT": ("embedding", "unembedding"),
}
# What LoRA runs beside in every block: the attention's dense layers.
LORA_LAYERS = ("query", "key", "value", "attention_output")

PREFIX_METHODS = ("HardPT", "SimplexPT", "RealPT", "SoftPT")
WEIGHT_METHODS = (*PARTS, "FullWT", "LoRAWT")
METHODS = (*PREFIX_METHODS, *WEIGHT_METHODS)


def prefix_from_rows(method: str, rows: Float[Array | np.ndarray, "*layers L width"]) -> Prefix:
    """Return the prefix of rows that a prefix method found, as results store them (SimplexPT: on the simplex)."""
    if not isinstance(method, str) or method not in PREFIX_FIELDS:
        raise UserError(f"method = {method}: must be one of {', '.join(PREFIX_FIELDS)}")
    return Prefix(**{PREFIX_FIELDS[method]: jnp.asarray(rows)})


def make_tuner(
    method: str,
    architecture: Architecture,
    prefix_length: int = 6,
    rank: int = 4,
    beside: tuple[str, ...] = LORA_LAYERS,
) -> Tuner:
    """Return a gradient tuner (Section 4.1); PrefixTuning learns rows for every layer (Petrov et al. 2024, Eq. 5).

    LoRAWT adds a product of factors of this rank to every matrix, or stack of matrices, that `beside` chooses: an array
    of at least two axes, on whose path in the parameters (as torso.blocks_0.query.kernel) a step matches one of these
    regular expressions. Settings that a method does not read change nothing: equal tuners are the same object.

    Raises ValueError for an unknown method, one that the architecture does not admit, prefix_length < 1 or rank < 1.
    """
    if not isinstance(method, str):
        raise UserError(f"method = {method}: must be a method's name")
    if method in PREFIX_FIELDS and method != "HardPT":
        check_prefix_length(prefix_length)
        if method == "PrefixTuning" and isinstance(architecture, LSTM):
            raise UserError("method = PrefixTuning: must have architecture transformer: attention reads its rows")
        width = architecture.embed_dim if method in ("SoftPT", "PrefixTuning") else architecture.num_tokens
        layers = (architecture.num_layers,) if method == "PrefixTuning" else ()
        return _prefix_tuner(method, (*layers, int(prefix_length), width))
    if method in PARTS:
        if getattr(architecture, "tied", False) and method != "Un+EmbedWT":
            raise UserError(f"method = {method}: must be Un+EmbedWT here, where the unembedding is the embedding")
        return _part_tuner(method)
    if method == "FullWT":
        return _FULL
    if method == "LoRAWT":
        check_integer("rank", rank, 1)
        if isinstance(architecture, LSTM) and tuple(beside) == LORA_LAYERS:
            raise UserError("method = LoRAWT: must have architecture transformer: it runs beside attention layers")
        return _lora_tuner(int(rank), tuple(beside))
    gradient_methods = ", ".join([*PREFIX_METHODS[1:], *WEIGHT_METHODS, "PrefixTuning"])
    raise UserError(f"method = {method}: must be one of {gradient_methods} (HardPT is a search: hard_search)")


_FULL = Tuner(init=lambda key, base: base, inject=lambda base, phi: (phi, NO_PREFIX), name="FullWT")


@functools.cache
def _prefix_tuner(method: str, shape: tuple[int, ...]) -> Tuner:
    def init(key, base):
        return (
            jax.random.normal(key, shape, jnp.float32) if method == "PrefixTuning" else random_hard_prefix(key, *shape)
        )

    def inject(base, phi):
        return base, prefix_from_rows(method, jax.nn.softmax(phi) if method == "SimplexPT" else phi)

    return Tuner(init, inject, f"{method} {shape}")


@functools.cache
def _part_tuner(method: str) -> Tuner:
    def init(key, base):
        has = list(base) if isinstance(base, Mapping) else []
        if not set(PARTS[method]) <= set(has):
            wanted = ", ".join(PARTS[method])
            raise UserError(f"base = parts {', '.join(map(str, has))}: must have {wanted} for {method}")
        return {part: base[part] for part in PARTS[method]}

    return Tuner(init, lambda base, phi: ({**base, **phi}, NO_PREFIX), method)


def _chosen(base: Params, beside: tuple[str, ...]) -> list[tuple[str, Any, int, int, int]]:
    """Return the matrices that LoRA runs beside: name, matrix, block, pattern, and how many such came before.

    A block is what stands on a path before the step that matches; both it and the pattern are told by their number.
    """
    chosen: list[tuple[str, Any, int, int, int]] = []
    blocks: dict[str, int] = {}
    for path, weight in jax.tree.leaves_with_path(base):
        name = array_name(path)
        matches = ((i, re.fullmatch(rf"((?:.*\.)?)(?:{rule})(?:\..*)?", name)) for i, rule in enumerate(beside))
        pattern, match = next((found for found in matches if found[1]), (-1, None))
        if match and weight.ndim >= 2:
            block = blocks.setdefault(match[1], len(blocks))
            chosen.append((name, weight, block, pattern, sum(each[2:4] == (block, pattern) for each in chosen)))
    if missing := sorted(set(range(len(beside))) - {each[3] for each in chosen}):
        raise UserError(f"beside = {beside[missing[0]]}: must match matrices of the network, which has none so named")
    return chosen


@functools.cache
def _lora_tuner(rank: int, beside: tuple[str, ...]) -> Tuner:
    def init(key, base):
        # Start at W + A @ B with B = 0, so that nothing has changed yet (Hu et al. 2021).
        phi = {}
        for name, weight, block, pattern, number in _chosen(base, beside):
            own = jax.random.split(jax.random.fold_in(key, block), len(beside))[pattern]
            own = jax.random.fold_in(own, number) if number else own
            *stack, rows, columns = weight.shape
            draw = jax.nn.initializers.lecun_normal(batch_axis=range(len(stack)))
            phi[name] = {
                "A": draw(own, (*stack, rows, rank), jnp.float32),
                "B": jnp.zeros((*stack, rank, columns), jnp.float32),
            }
        return phi

    def inject(base, phi):
        def add(path, weight):
            factors = phi.get(array_name(path))
            return weight if factors is None else weight + factors["A"] @ factors["B"]

        return jax.tree.map_with_path(add, base), NO_PREFIX

    return Tuner(init, inject, f"LoRAWT {rank} {' '.join(beside)}")
