"""The LSTM: layers that carry a cell and a hidden state from token to token (Section 4.1)."""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesprompt.checks import UserError
from bayesprompt.devices import Cores
from bayesprompt.models.layers import State, check_sizes


@dataclass(frozen=True)
class LSTM:
    """Sizes of the LSTM (Section 4.1)."""

    num_tokens: int = 2
    embed_dim: int = 128
    hidden_dim: int = 128
    num_layers: int = 1
    sequences_in_cache: ClassVar[int] = 256
    cores: ClassVar[Cores] = "batch"

    def __post_init__(self) -> None:
        """Raise ValueError for sizes below 1."""
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
        if layers is not None:
            raise UserError("prefix = layers: a prefix in every layer needs a Transformer, whose attention reads it")
        zeros = jnp.zeros((1, self.architecture.hidden_dim))
        if self.is_initializing():  # flax creates a cell's parameters when it is first called
            for index, cell in enumerate(self.cells):
                cell((zeros, zeros), zeros if index else rows[:1])
        states, x = [], rows[:, None]
        for cell in self.cells:
            kernel, recurrent, bias = gate_weights(cell)
            carry = (zeros, zeros)
            carry, x = jax.lax.scan(lambda c, g, r=recurrent: lstm_step(c, g, r), carry, x @ kernel + bias[None, None])
            states.append(carry)
        kernel, _, bias = gate_weights(self.cells[0])
        return {"first": x[-1, 0], "states": states, "gates": vocabulary @ kernel + bias[None]}

    def predict(self, state: State, choice: Float[Array, "B n K"]) -> tuple[Array, Array]:
        """Return the output of the prompt's last row (D,) and of the data rows (B, n, D)."""
        x = choice.swapaxes(0, 1)
        for index, (cell, start) in enumerate(zip(self.cells, state["states"], strict=True)):
            kernel, recurrent, bias = gate_weights(cell)
            # First layer: a token's input gates are looked up inside the step; later layers project the layer below.
            look_up, project = (lambda row: row @ state["gates"]), (lambda row, k=kernel, b=bias: row @ k + b[None])
            gates = project if index else look_up
            carry = jax.tree.map(lambda y: jnp.broadcast_to(y, (choice.shape[0], y.shape[-1])), start)
            _, x = jax.lax.scan(lambda c, row, g=gates, r=recurrent: lstm_step(c, g(row), r), carry, x)
        return state["first"], x.swapaxes(0, 1)


def gate_weights(cell: nn.OptimizedLSTMCell) -> tuple[Array, Array, Array]:
    """Return a cell's input kernel (D, 4H), recurrent kernel (H, 4H) and bias (4H,), gates in the order i, f, g, o."""
    params = cell.variables["params"]
    kernel, recurrent = (jnp.concatenate([params[s + g]["kernel"] for g in "ifgo"], axis=1) for s in "ih")
    return kernel, recurrent, jnp.concatenate([params["h" + g]["bias"] for g in "ifgo"])


def lstm_step(carry: tuple[Array, Array], gates: Array, recurrent: Array) -> tuple[tuple[Array, Array], Array]:
    """Advance cell and hidden state by one token, given its input gates (Hochreiter & Schmidhuber 1997)."""
    cell, hidden = carry
    i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (cell, hidden), hidden
