"""The networks and the training loop once more, plain and slow: what the fast ones must agree with.

Both networks read the whole of [start vector, prefix, tokens] for every sequence, with flax's own layers, attention and
recurrence, from the parameters of the package's networks. Nothing here is shared with the package.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayesprompt.models.predictor import LSTM, make_predictor

# For programs that run once: XLA compiles these networks five times as fast, to about the same rounding errors.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
_jit = jax.jit  # tests put quick_jit in its place


def quick_jit(*arguments, **settings):
    """`jax.jit`, with those options of QUICK that this version of XLA still knows."""
    return _jit(*arguments, compiler_options=_known(), **settings)


@functools.cache
def _known():
    def known(name):
        try:
            _jit(lambda: 0, compiler_options={name: QUICK[name]})()
        except jax.errors.JaxRuntimeError as error:
            assert name in str(error)
            return False
        return True

    return {name: QUICK[name] for name in QUICK if known(name)}


@functools.lru_cache
def parameters(architecture):
    """Return parameters like initial ones, but nowhere 0 or 1, so that every one matters."""
    shapes = jax.eval_shape(make_predictor(architecture).init, jax.random.key(0))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) * 0.4 + (x.ndim == 1), jnp.float32), shapes)


def log_probs(architecture, params, tokens, prefix):
    """Return log pi(x_n = . | prefix, x_<n), (B, N, K)."""
    embed = nn.Dense(architecture.embed_dim)
    read = lambda inputs: embed.apply({"params": params["embedding"]}, inputs)  # noqa: E731
    parts = [read(jnp.zeros((1, architecture.num_tokens)))]
    if prefix.inputs is not None:
        parts.append(read(prefix.inputs))
    if prefix.embeddings is not None:
        parts.append(prefix.embeddings)
    if prefix.layers is not None:
        parts.append(prefix.layers[0])
    start = sum(len(rows) for rows in parts)
    data = read(jax.nn.one_hot(tokens, architecture.num_tokens))
    prompt = jnp.concatenate(parts)
    rows = jnp.concatenate([jnp.broadcast_to(prompt, (len(tokens), *prompt.shape)), data], axis=1)
    network = lstm if isinstance(architecture, LSTM) else transformer
    outputs = network(architecture, params["torso"], rows, prefix.layers)
    logits = nn.Dense(architecture.num_tokens).apply({"params": params["unembedding"]}, outputs)
    return jax.nn.log_softmax(logits)[:, start - 1 : -1]


def lstm(architecture, params, x, layers):
    """Run flax's own cells over (B, rows, D)."""
    for index in range(architecture.num_layers):
        rnn = nn.RNN(nn.OptimizedLSTMCell(architecture.hidden_dim))
        start = jnp.zeros((len(x), architecture.hidden_dim), x.dtype)
        x = rnn.apply({"params": {"cell": params[f"cells_{index}"]}}, x, initial_carry=(start, start))
    return x


def transformer(architecture, params, x, layers):
    """Run the blocks over (B, rows, D) under a causal mask; `layers` replaces what attention reads at rows 1..L."""
    batch, length, width = x.shape
    place = jnp.arange(length)[:, None] / 1e4 ** (2 * jnp.arange(width // 2)[None] / width)
    position = jnp.concatenate([jnp.sin(place), jnp.cos(place)], axis=1)
    prompt = slice(1, 1 + (0 if layers is None else layers.shape[1]))
    x = x + position.at[prompt].set(0)[None]
    for index in range(architecture.num_layers):
        block = params[f"blocks_{index}"]
        norm = lambda name, y, **kw: nn.LayerNorm(**kw).apply({"params": block[name]}, y)  # noqa: B023, E731
        dense = lambda name, y: y @ block[name]["kernel"]  # noqa: B023, E731
        heads = lambda y: y.reshape(batch, length, architecture.num_heads, -1)  # noqa: E731
        read = x if layers is None else x.at[:, prompt].set(jnp.broadcast_to(layers[index], x[:, prompt].shape))
        read = norm("attention_norm", read)
        attended = nn.dot_product_attention(
            heads(norm("query_norm", dense("query", read), use_bias=False)),
            heads(norm("key_norm", dense("key", read), use_bias=False)),
            heads(dense("value", read)),
            mask=nn.make_causal_mask(jnp.ones((batch, length))),
        )
        x = x + dense("attention_output", attended.reshape(x.shape))
        x = x + dense("mlp_out", jax.nn.gelu(dense("mlp_in", norm("mlp_norm", x)), approximate=True))
        x = norm("output_norm", x)
    return x


def loss(architecture, params, tokens, prefix):
    """Return the cumulative log-loss, nats: summed over steps, averaged over sequences (never over the prefix)."""
    chosen = jnp.take_along_axis(log_probs(architecture, params, tokens, prefix), tokens[..., None], axis=-1)
    return -chosen.sum((1, 2)).mean()


def fit(architecture, tuner, base, source, config, key):
    """Return phi and the losses after `config.steps` steps of Adam, one repetition, one step after the other."""
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate))
    phi = tuner.init(jax.random.fold_in(key, 0), base)
    state, losses = optimizer.init(phi), []

    @quick_jit
    def value_and_grad(phi, tokens):
        def objective(phi):
            params, prefix = tuner.inject(base, phi)
            return loss(architecture, params, tokens, prefix)

        return jax.value_and_grad(objective)(phi)

    for step in range(config.steps):
        step_key = jax.random.fold_in(jax.random.fold_in(key, 1), step)
        tokens, _ = source.sample(step_key, config.batch, config.length)
        value, grad = value_and_grad(phi, tokens)
        updates, state = optimizer.update(grad, state)
        phi = optax.apply_updates(phi, updates)
        losses.append(value)
    return phi, jnp.stack(losses)
