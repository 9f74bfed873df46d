"""The LLaMA family as a `Predictor`: one block, scanned over stacked weights."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError, check_integer, check_tokens
from bayesprompt.models.layers import Layer, Memory, State, Trace, attend, behind, cut, rotate, token_losses
from bayesprompt.models.llama_sizes import Llama, shapes
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, check_prefix

# Of a frozen block's forward pass, what a gradient needs and only a matrix product could give again is kept; the rest
# is computed again.
_KEPT = "kept for the gradient"


@functools.lru_cache
def make_llama(sizes: Llama, answer: int = 0, among: tuple[int, ...] = ()) -> Predictor:
    """Return the predictor of these sizes; it predicts the last `answer` tokens of a sequence, or all that it can (0).

    Behind a prompt of rows that is every token; with no prompt, or one given layer by layer, the first token is read
    and not predicted. A target token of -1 is read as token 0 and costs nothing. With K tokens `among`, it predicts
    which of these comes: log-probabilities (B, n, K), and another target token costs NaN. Raises UserError for
    `answer` < 0, and for `among` with a token twice or outside the vocabulary.
    """
    check_integer("answer", answer, 0)
    if len(set(among)) < len(among) or not all(0 <= token < sizes.num_tokens for token in among):
        raise UserError(f"among = {among}: must be different tokens in 0..{sizes.num_tokens - 1}")
    answers = functools.partial(_answers, sizes, answer, among)
    return Predictor(
        init=functools.partial(_init, sizes),
        prompt=functools.partial(_prompt, sizes),
        predict=functools.partial(_predict, answers),
        architecture=sizes,
        losses=functools.partial(_losses, answers, among),
        inspect=functools.partial(_inspect, sizes, answer),
        sequences_in_cache=sizes.sequences_in_cache,
        cores="nothing",
    )


def _init(sizes: Llama, key: Array) -> Params:
    """Draw weights with standard deviation 0.02."""
    leaves, structure = jax.tree.flatten_with_path(shapes(sizes))
    drawn = [
        jnp.ones_like(leaf) if "norm" in path[-1].key else 0.02 * jax.random.normal(k, leaf.shape, leaf.dtype)
        for (path, leaf), k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


class Projected(NamedTuple):
    """Queries (scaled), keys and values of rows, by head, the former two rotated to their positions."""

    query: Float[Array, "*rows H d"]
    key: Float[Array, "*rows H d"]
    value: Float[Array, "*rows H d"]

    @property
    def memory(self) -> Memory:
        """Keys and values, heads first, as rows that a whole batch has before it."""
        return self.key.swapaxes(-3, -2), self.value.swapaxes(-3, -2)


class Before(NamedTuple):
    """What the attention of one block reads before a whole batch: rows like its own input, or keys and values."""

    rows: Float[Array, "S D"]
    keys_values: Float[Array, "2 L W"]

    def project(self, sizes: Llama, block: Params) -> Projected:
        """Return its queries, keys and values; those given as they are ask nothing."""
        rows = _project(sizes, block, self.rows, jnp.arange(len(self.rows)))
        if not self.keys_values.shape[-2]:
            return rows
        each = self.keys_values.reshape(2, -1, sizes.num_kv_heads, sizes.head_dim)
        key, value = jnp.repeat(each, sizes.num_heads // sizes.num_kv_heads, axis=-2)
        return Projected(jnp.zeros_like(key), key, value)


def _norm(x: Array, scale: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon) * jnp.expand_dims(scale, range(x.ndim - 1))


def _project(sizes: Llama, block: Params, x: Float[Array, "*batch n D"], places: Int[Array, " n"]) -> Projected:
    x = _norm(x, block["attention_norm"], sizes.norm_epsilon)
    query, key, value = (checkpoint_name(x @ block[name], _KEPT) for name in ("query", "key", "value"))
    query, key, value = (
        y.reshape(*y.shape[:-1], y.shape[-1] // sizes.head_dim, sizes.head_dim) for y in (query, key, value)
    )
    query, key = (rotate(y, places, sizes.rope_base, sizes.rope_factors) for y in (query, key))
    shared = sizes.num_heads // sizes.num_kv_heads  # heads that read the same keys and values
    return Projected(query / sizes.head_dim**0.5, jnp.repeat(key, shared, axis=-2), jnp.repeat(value, shared, axis=-2))


def _finish(sizes: Llama, block: Params, x: Array, added: Array) -> Array:
    x = checkpoint_name(x + added, _KEPT)
    y = _norm(x, block["mlp_norm"], sizes.norm_epsilon)
    gate, up = (checkpoint_name(y @ block[name], _KEPT) for name in ("mlp_gate", "mlp_up"))
    return x + (jax.nn.silu(gate) * up) @ block["mlp_down"]


class Done(NamedTuple):
    """What a block did: its output, what its attention added, what it projected rows and the prefix before them to."""

    output: Float[Array, "B n D"]
    added: Float[Array, "B n D"]
    rows: Projected
    prefix: Projected


def _run(sizes: Llama, block: Params, x: Float[Array, "B n D"], prefix: Before) -> Done:
    """Run a block on rows behind a prefix that only its attention reads."""
    before = prefix.project(sizes, block)
    rows = _project(sizes, block, x, len(before.key) + jnp.arange(x.shape[1]))
    added = attend(*rows, before.memory) @ block["attention_output"]
    return Done(_finish(sizes, block, x, added), added, rows, before)


def _unembedding(sizes: Llama, params: Params, x: Float[Array, "*rows D"]) -> tuple[Array, Float[Array, "K D"]]:
    """Return the normalised outputs, and the tokens' rows whose products with them are the logits."""
    x = _norm(x, params["unembedding"]["norm"], sizes.norm_epsilon)
    return x, params["unembedding"].get("rows", params["embedding"])


def _logits(sizes: Llama, params: Params, x: Float[Array, "*rows D"]) -> Float[Array, "*rows K"]:
    x, rows = _unembedding(sizes, params, x)
    return x @ rows.T


def _prompt(sizes: Llama, params: Params, prefix: Prefix, length: int) -> State:
    """Return what each block's attention reads before all rows, and rows that stand before the tokens (S, D).

    Nothing is computed once a batch: for a few rows that would cost more, reading all weights once again.
    """
    check_prefix(prefix, sizes)
    if prefix.length + length > sizes.context:
        raise UserError(f"length = {length}: prompt and tokens must have at most {sizes.context} positions")
    nothing = jnp.zeros((sizes.num_layers, 0, sizes.embed_dim), params["embedding"].dtype)
    none = jnp.zeros((sizes.num_layers, 2, 0, sizes.num_kv_heads * sizes.head_dim), nothing.dtype)
    rows = prefix.inputs @ params["embedding"] if prefix.inputs is not None else prefix.embeddings
    return {
        "layers": Before(
            nothing if prefix.layers is None else prefix.layers,
            none if prefix.keys_values is None else prefix.keys_values,
        ),
        "rows": nothing[0] if rows is None else rows,
    }


def _embed(params: Params, state: State, tokens: Int[Array, "B n"]) -> Float[Array, "B m D"]:
    """Return the prompt's rows, if it has any, and the tokens' embeddings (-1: of token 0; none: NaN)."""
    x = params["embedding"].at[jnp.maximum(tokens, 0)].get(mode="fill", fill_value=jnp.nan)
    return behind(state["rows"], x)


def _answers(sizes: Llama, answer: int, among: tuple[int, ...], params: Params, state: State, tokens: Array) -> tuple:
    """Return the outputs (B, n, D) that predict the last n tokens, and the rows (K, D) of what they may be."""

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_KEPT), prevent_cse=False)
    def read(x, xs):
        return _run(sizes, xs[0], x, xs[1]).output, None

    x = jax.lax.scan(read, _embed(params, state, tokens[:, :-1]), (params["torso"], state["layers"]))[0]
    x, rows = _unembedding(sizes, params, x[:, -(answer or tokens.shape[1]) :])
    return x, rows[jnp.array(among)] if among else rows


def _predict(answers: Callable, params: Params, state: State, tokens: Int[Array, "B N"]) -> Array:
    x, rows = answers(params, state, tokens)
    return jax.nn.log_softmax(x @ rows.T)


def _losses(
    answers: Callable, among: tuple[int, ...], params: Params, state: State, tokens: Int[Array, "B N"]
) -> Array:
    x, rows = answers(params, state, tokens)
    tokens = tokens[:, -x.shape[1] :]
    if among:  # by their place among these; what is none of them comes after the last
        same = tokens[..., None] == jnp.array(among)[None, None]
        tokens = jnp.where(tokens == -1, -1, jnp.where(same.any(-1), same.argmax(-1), len(among)))
    return token_losses(rows, x, tokens)


def _inspect(sizes: Llama, answer: int, params: Params, tokens: Int[Array, "B N"], prefix: Prefix) -> Trace:
    state = _prompt(sizes, params, prefix, tokens.shape[1])

    def read(x, xs):
        done = _run(sizes, xs[0], x, xs[1])
        rows = (behind(before, own) for before, own in zip(done.prefix, done.rows, strict=True))
        return done.output, Layer(x, done.added, cut(*rows, slice(0, prefix.length)))

    x, stacked = jax.lax.scan(read, _embed(params, state, tokens[:, :-1]), (params["torso"], state["layers"]))
    layers = tuple(jax.tree.map(lambda y, i=i: y[i], stacked) for i in range(sizes.num_layers))
    x = x[:, -(answer or tokens.shape[1]) :]
    return Trace(layers, jax.nn.log_softmax(_logits(sizes, params, x)))


def generate(
    sizes: Llama, params: Params, tokens: Int[Array | np.ndarray, "B N"], steps: int, prefix: Prefix = NO_PREFIX
) -> Int[Array, "B steps"]:
    """Return the next `steps` tokens by greedy decoding; N may be 0 behind a prompt of rows.

    Raises UserError for tokens outside the vocabulary, for none at all, and for more positions than the context has.
    """
    check_integer("steps", steps, 0)
    tokens = check_tokens(tokens, sizes.num_tokens)
    rows = prefix.inputs is not None or prefix.embeddings is not None
    if tokens.ndim != 2 or not (tokens.shape[1] or (prefix.length and rows)):
        raise UserError(f"tokens = array of shape {tokens.shape}: must be (B, N), N >= 1 or behind a prompt of rows")
    return _generate(sizes, params, tokens.astype(np.int32), int(steps), prefix)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _generate(sizes: Llama, params: Params, tokens: Int[Array, "B N"], steps: int, prefix: Prefix) -> Array:
    """Read the text once, then one token at a time, with keys and values cached."""
    state = _prompt(sizes, params, prefix, tokens.shape[1] + steps)
    if not steps:
        return tokens[:, :0]
    x = _embed(params, state, tokens)
    given, before = x.shape[1], sum(rows.shape[-2] for rows in state["layers"])

    def fill(x, xs):
        done = _run(sizes, xs[0], x, xs[1])
        room = ((0, 0), (0, steps), (0, 0), (0, 0))
        return done.output, (done.prefix.memory, [jnp.pad(y, room) for y in done.rows[1:]])

    x, (memory, cache) = jax.lax.scan(fill, x, (params["torso"], state["layers"]))

    def write(carry, place):
        said, cache = carry

        def read(x, xs):
            block, memory, old = xs
            query, *new = _project(sizes, block, x, (before + place)[None])
            kept = [jax.lax.dynamic_update_slice(y, z, (0, place, 0, 0)) for y, z in zip(old, new, strict=True)]
            added = attend(query, *kept, memory, place=place) @ block["attention_output"]
            return _finish(sizes, block, x, added), kept

        x, cache = jax.lax.scan(read, params["embedding"][said][:, None], (params["torso"], memory, cache))
        return (_logits(sizes, params, x[:, 0]).argmax(-1).astype(jnp.int32), cache), said

    first = _logits(sizes, params, x[:, -1]).argmax(-1).astype(jnp.int32)
    (last, _), said = jax.lax.scan(write, (first, cache), given + jnp.arange(steps - 1))
    return jnp.concatenate([said, last[None]]).T
