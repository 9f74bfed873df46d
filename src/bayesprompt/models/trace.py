"""What a network does inside, read from it the same way for all: `inspect`, and what it says of prefixes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import Head
from bayesprompt.models.gpt import GPT, make_gpt
from bayesprompt.models.layers import Layer, Trace
from bayesprompt.models.predictor import Network, Params, Predictor, check_input
from bayesprompt.models.prefixes import NO_PREFIX, Prefix

__all__ = ["Layer", "Trace", "composed_heads", "first_rows", "inspect", "layers_from_soft", "soft_from_hard"]


def inspect(
    predictor: Predictor, params: Params, tokens: Int[Array | np.ndarray, "B N"], prefix: Prefix = NO_PREFIX
) -> Trace:
    """Return what every layer does with the prompt and the tokens; the last token predicts nothing, and is not read.

    Rows, in their order: the coin networks' start vector, L prefix rows, N - 1 tokens (row L + n - 1, from 0, is step
    n); the GPT's pads or what stands in their place, N - 1 digits; the LLaMA network's L prompt rows, if it is no
    prefix given layer by layer, N - 1 tokens. In a reading the start vector is content, and pads are the prefix; the
    tokens ask. Products are taken at the highest precision.
    Raises UserError as `Predictor.apply` does, and for a predictor that has no `inspect`.
    """
    if predictor.inspect is None:
        raise UserError(f"predictor = {type(predictor.architecture).__name__}: must have `inspect`")
    check_input(predictor.architecture, tokens, prefix)
    return _inspect(predictor, params, jnp.asarray(tokens), prefix)


@functools.partial(jax.jit, static_argnums=0)
def _inspect(predictor: Predictor, params: Params, tokens: Array, prefix: Prefix) -> Trace:
    assert predictor.inspect is not None
    with jax.default_matmul_precision("highest"):
        return predictor.inspect(params, tokens, prefix)


def soft_from_hard(predictor: Predictor, params: Params, prefix: Prefix) -> Prefix:
    """Return the soft prefix that is a hard (or simplex, or real) one: its rows' embeddings (Section 2).

    Raises UserError for a prefix without rows of input, and for other than a network of Genewein et al.
    """
    if prefix.inputs is None:
        raise UserError("prefix = no inputs: must be rows in token space")
    rows: Any = Network(predictor.architecture).apply({"params": params}, prefix, method="rows")
    return Prefix(embeddings=rows[1:])


def layers_from_soft(predictor: Predictor, params: Params, prefix: Prefix) -> Prefix:
    """Return the layer-by-layer prefix that does what a soft one does: what each block reads there (Section 2).

    Rows of a layer prefix carry no position, so the first layer's hold it. Hard prefixes are soft ones, and are taken.
    Raises UserError for no prefix, one that is given layer by layer already, and a network without attention.
    """
    if prefix.inputs is None and prefix.embeddings is None:
        raise UserError("prefix = no inputs or embeddings: must be rows of input or of embedding")
    layers = inspect(predictor, params, np.zeros((1, 2), np.int32), prefix).layers
    if layers[0].reading is None:
        raise UserError(f"predictor = {type(predictor.architecture).__name__}: must have attention")
    return Prefix(layers=jnp.stack([layer.input[0, -1 - prefix.length : -1] for layer in layers]))


def composed_heads(sizes: GPT, params: Params, layer: int) -> tuple[Head, ...]:
    """Return the heads of a block of a GPT as the paper writes them: rows of D numbers in, and, summed, D numbers out.

    A head's W_V is its part of the output projection times its value projection. Kept are these four matrices; left out
    are their biases, which the paper's heads do not have, and all that surrounds attention (LayerNorm, residual, MLP).
    Raises UserError for a layer that is not there.
    """
    if not 0 <= layer < sizes.num_layers:
        raise UserError(f"layer = {layer}: must lie in 0..{sizes.num_layers - 1}")
    block, D, H = params["torso"][f"blocks_{layer}"], sizes.embed_dim, sizes.num_heads
    query, key, value = (
        np.asarray(block[name]["kernel"], np.float64).reshape(D, H, -1) for name in ("query", "key", "value")
    )
    out = np.asarray(block["attention_output"]["kernel"], np.float64).reshape(H, -1, D)
    return tuple(Head(query[:, h].T, key[:, h].T, out[h].T @ value[:, h].T) for h in range(H))


def first_rows(
    sizes: GPT, params: Params, tokens: Int[Array | np.ndarray, "B N"], prefix: Prefix
) -> tuple[Float[np.ndarray, "B n D"], Float[np.ndarray, "S D"]]:
    """Return what the heads of a GPT's first block read, after its LayerNorm: n = N - 1 content rows, S pads."""
    seen = np.asarray(inspect(make_gpt(sizes), params, tokens, prefix).layers[0].input, np.float64)
    if sizes.first_norm:
        norm = params["torso"]["blocks_0"]["attention_norm"]
        seen = (seen - seen.mean(-1, keepdims=True)) / np.sqrt(seen.var(-1, keepdims=True) + 1e-5)
        seen = seen * np.asarray(norm["scale"], np.float64) + np.asarray(norm["bias"], np.float64)
    return seen[:, sizes.pads :], seen[0, : sizes.pads]
