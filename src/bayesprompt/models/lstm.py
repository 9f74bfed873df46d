"""The LSTM: layers that carry a cell and a hidden state from token to token (Section 4.1)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError
from bayesprompt.models.layers import Layer, State, check_sizes, one_hot

Carry = tuple[Array, Array]  # cell and hidden state (B, H)


@dataclass(frozen=True)
class LSTM:
    """Sizes of the LSTM (Section 4.1)."""

    num_tokens: int = 2
    embed_dim: int = 128
    hidden_dim: int = 128
    num_layers: int = 1

    def __post_init__(self) -> None:
        """Raise UserError for sizes below 1."""
        check_sizes(self)

    def token_flops(self, length: int) -> int:
        """Return the nominal floating-point operations of one token's matrix products, forward."""
        rows = self.embed_dim + (2 * self.num_layers - 1) * self.hidden_dim
        return 2 * rows * 4 * self.hidden_dim


class LSTMTorso(nn.Module):
    """LSTM layers; their parameters are those of flax's OptimizedLSTMCell."""

    architecture: LSTM

    def setup(self) -> None:
        """Create the cells."""
        self.cells = [nn.OptimizedLSTMCell(self.architecture.hidden_dim) for _ in range(self.architecture.num_layers)]

    def prompt(self, rows: Array, vocabulary: Array, layers: Array | None, length: int) -> State:
        """Keep every layer's cell and hidden state, and the first layer's input gates of every token."""
        if self.is_initializing():  # flax creates a cell's parameters when it is first called
            zeros = jnp.zeros((1, self.architecture.hidden_dim), jnp.float32)
            for index, cell in enumerate(self.cells):
                cell((zeros, zeros), zeros if index else rows[:1])
        steps, x = self.run(rows[:, None], layers)
        kernel, _, bias = gate_weights(self.cells[0])
        # A token has only K values: its input gates are computed once a value, not once a token.
        return {
            "first": x[-1, 0],
            "states": [jax.tree.map(lambda y: y[-1], carries) for _, carries in steps],
            "gates": vocabulary @ kernel + bias[None],
        }

    def run(
        self, x: Float[Array, "rows B D"], layers: Array | None
    ) -> tuple[list[tuple[Array, Carry]], Float[Array, "rows B H"]]:
        """Run the cells over explicit rows; return each one's input and carries (rows, B, H), and the last's output."""
        if layers is not None:
            raise UserError("prefix = layers: must be inputs or embeddings for an LSTM, which has no attention")
        start, steps = (jnp.zeros((x.shape[1], self.architecture.hidden_dim), x.dtype),) * 2, []
        for cell in self.cells:
            kernel, recurrent, bias = gate_weights(cell)
            step = lambda carry, gates, r=recurrent: (lstm_step(carry, gates, r),) * 2  # noqa: E731
            _, carries = jax.lax.scan(step, start, x @ kernel + bias[None, None])
            steps.append((x, carries))
            x = carries[1]
        return steps, x

    def predict(self, state: State, tokens: Int[Array, "B n"]) -> tuple[Array, Array]:
        """Return the output of the prompt's last row (D,) and of the data rows (B, n, D)."""
        x = one_hot(tokens, self.architecture.num_tokens).swapaxes(0, 1)
        for index, (cell, start) in enumerate(zip(self.cells, state["states"], strict=True)):
            kernel, recurrent, bias = gate_weights(cell)
            # First layer: a token's input gates are looked up inside the step; later layers project the layer below.
            look_up, project = (lambda row: row @ state["gates"]), (lambda row, k=kernel, b=bias: row @ k + b[None])

            def step(carry, row, gates=project if index else look_up, recurrent=recurrent):
                carry = lstm_step(carry, gates(row), recurrent)
                return carry, carry[1]

            carry = jax.tree.map(lambda y: jnp.broadcast_to(y, (len(tokens), y.shape[-1])), start)
            _, x = jax.lax.scan(step, carry, x)
        return state["first"], x.swapaxes(0, 1)

    def inspect(
        self, rows: Float[Array, "B rows D"], start: int, layers: Array | None
    ) -> tuple[tuple[Layer, ...], Array]:
        """Return each layer's input and cell states at explicit rows, and the last one's output."""
        steps, x = self.run(rows.swapaxes(0, 1), layers)
        found = (Layer(row.swapaxes(0, 1), cells.swapaxes(0, 1), None) for row, (cells, _) in steps)
        return tuple(found), x.swapaxes(0, 1)


def gate_weights(cell: nn.OptimizedLSTMCell) -> tuple[Array, Array, Array]:
    """Return a cell's input kernel (D, 4H), recurrent kernel (H, 4H) and bias (4H,), gates in the order i, f, g, o."""
    params = cell.variables["params"]
    kernel, recurrent = (jnp.concatenate([params[s + g]["kernel"] for g in "ifgo"], axis=1) for s in "ih")
    return kernel, recurrent, jnp.concatenate([params["h" + g]["bias"] for g in "ifgo"])


def lstm_step(carry: Carry, gates: Float[Array, "B gates"], recurrent: Float[Array, "H gates"]) -> Carry:
    """Advance cell and hidden state by one token, given its input gates (Hochreiter & Schmidhuber 1997)."""
    cell, hidden = carry
    i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)
