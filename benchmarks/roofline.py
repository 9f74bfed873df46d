"""What bounds the parts of a step: arithmetic or memory? Each part alone, at the paper's sizes, float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from harness import arguments, finish, matrix_rate, memory_rate, paired

# 64 sequences of 99 tokens (the Transformer's part of a batch), 256 sequences at one step (the LSTM's batch).
ROWS, BATCH, WIDTH, HEADS, LENGTH = 64 * 99, 256, 128, 4, 99


def parts():
    """Return name, function, shapes of its arguments, floating-point operations (20 for a gelu)."""
    head = (64, LENGTH, HEADS, WIDTH // HEADS)
    yield "MLP product", jnp.matmul, [(ROWS, WIDTH), (WIDTH, 4 * WIDTH)], 2 * ROWS * WIDTH * 4 * WIDTH
    yield "LSTM product", jnp.matmul, [(BATCH, WIDTH), (WIDTH, 4 * WIDTH)], 2 * BATCH * WIDTH * 4 * WIDTH
    scores = lambda q, k: jnp.einsum("bihd,bjhd->bhij", q, k)  # noqa: E731
    yield "attention scores", scores, [head, head], 2 * 64 * LENGTH**2 * WIDTH
    yield "gelu", nn.gelu, [(ROWS, 4 * WIDTH)], 20 * ROWS * 4 * WIDTH
    yield (
        "LayerNorm",
        lambda x: nn.LayerNorm().apply({"params": {"scale": x[0], "bias": x[0]}}, x),
        [(ROWS, WIDTH)],
        (8 * ROWS * WIDTH),
    )
    yield "Adam", lambda w, g, m, v: w - 0.1 * (m + g) / jnp.sqrt(v + g * g), [(WIDTH * 1550,)] * 4, 6 * WIDTH * 1550


if __name__ == "__main__":
    options, rows = arguments(__doc__), []
    for name, function, shapes, flops in parts():
        given = [jnp.ones(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(function)
        moved = sum(x.nbytes for x in given) + jax.eval_shape(function, *given).size * 4
        (seconds,) = paired(50 * options.rounds, lambda call=compiled, x=given: call(*x))
        rows.append({"case": name, "flops": flops, "bytes": moved, "seconds": seconds})
        bound = min(matrix_rate(), flops / moved * memory_rate())
        print(
            f"{name:18s} {flops / moved:7.1f} FLOP/byte {flops / seconds / 1e9:8.1f} GFLOP/s, roof {bound / 1e9:7.1f}",
            flush=True,
        )
    finish(options, __file__, rows)
