"""A prefix is what a model reads before the data: rows of input, of embedding or for every layer; keys and values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from bayesprompt.checks import UserError, check_tokens

# Exhaustive search over hard prefixes stops here: 2**16 prefixes on 2048 sequences are already an hour of CPU time.
MAX_HARD_PREFIXES = 2**16


class Prefix(NamedTuple):
    """Rows read between the start vector and the data (Section 3); at most one of the fields is set.

    - inputs: (L, K) rows in token space: one-hot (HardPT), on the simplex (SimplexPT) or anywhere (RealPT).
    - embeddings: (L, D) rows in embedding space (SoftPT).
    - layers: (num_layers, L, D) rows that the attention of each block reads at the prefix positions instead of the
      block's own input, without position (prefix-tuning in the sense of Li & Liang 2021, Petrov et al. 2024).
    - keys_values: (num_layers, 2, L, W) keys, turned to positions 0 to L-1, and values that the attention of each block
      reads there, all heads of width W side by side: how PEFT stores prefix-tuning. Of LLaMA networks only.
    """

    inputs: Shaped[Array, "L K"] | None = None
    embeddings: Float[Array, "L D"] | None = None
    layers: Float[Array, "layers L D"] | None = None
    keys_values: Float[Array, "layers 2 L W"] | None = None

    @property
    def length(self) -> int:
        """Number of rows L; 0 for no prefix."""
        rows = [field for field in self if field is not None]
        return rows[0].shape[-2] if rows else 0


NO_PREFIX = Prefix()


def hard_prefix(tokens: Int[Array | np.ndarray, " L"], num_tokens: int = 2) -> Prefix:
    """Return the one-hot prefix of `tokens`; raises UserError for a token outside 0..num_tokens-1."""
    return Prefix(inputs=jax.nn.one_hot(check_tokens(tokens, num_tokens), num_tokens))


def all_hard_prefixes(prefix_length: int, num_tokens: int = 2) -> Int[np.ndarray, "prefixes L"]:
    """Return every token sequence of length L, counting upwards; raises UserError where K**L is too many to search."""
    check_prefix_length(prefix_length)
    if num_tokens**prefix_length > MAX_HARD_PREFIXES:
        longest = int(np.log(MAX_HARD_PREFIXES) / np.log(num_tokens) + 1e-9)
        raise UserError(
            f"prefix_length = {prefix_length}: must lie in 1..{longest} to search all prefixes over {num_tokens} tokens"
        )
    grid = np.indices((num_tokens,) * prefix_length, dtype=np.int32)
    return grid.reshape(prefix_length, -1).T


def check_prefix(prefix: Prefix, architecture: Any) -> None:
    """Raise UserError unless at most one field is set, with rows as a network of these sizes reads them."""
    if not isinstance(prefix, Prefix):
        raise UserError(f"prefix = {type(prefix).__name__}: must be a Prefix")
    given = {name: rows.shape for name, rows in prefix._asdict().items() if rows is not None}
    if len(given) > 1:
        raise UserError(f"prefix = {' and '.join(given)}: must have one field at most")
    width = architecture.embed_dim
    wanted = {"inputs": (architecture.num_tokens,), "embeddings": (width,), "layers": (architecture.num_layers, width)}
    if hasattr(architecture, "num_kv_heads"):
        wanted["keys_values"] = (architecture.num_layers, 2, architecture.num_kv_heads * architecture.head_dim)
    for name, shape in given.items():
        if name not in wanted:
            raise UserError(
                f"prefix = {name}: must be of a LLaMA network; {type(architecture).__name__} reads {', '.join(wanted)}"
            )
        if (*shape[:-2], shape[-1]) != wanted[name]:
            must = ", ".join(map(str, (*wanted[name][:-1], "L", wanted[name][-1])))
            raise UserError(f"prefix = {name} of shape {shape}: must be ({must})")


def check_prefix_length(prefix_length: int) -> None:
    """Raise UserError unless the prefix length is a whole number >= 1."""
    if not isinstance(prefix_length, int | float | np.number) or not prefix_length >= 1 or prefix_length % 1:
        raise UserError(f"prefix_length = {prefix_length}: must be a whole number >= 1")


def random_hard_prefix(key: Array, prefix_length: int, width: int) -> Float[Array, "L width"]:
    """Draw L random one-hot rows: where tuned prefixes start, and what RandomPF reads."""
    return jax.nn.one_hot(jax.random.randint(key, (prefix_length,), 0, width, jnp.int32), width, dtype=jnp.float32)


def prompt_compositions(prefix_length: int, num_tokens: int = 2) -> Int[np.ndarray, "compositions K"]:
    """Return every way to divide L tokens among the K values: all that an exchangeable predictor sees of a prompt."""
    check_prefix_length(prefix_length)
    grid = np.indices((prefix_length + 1,) * (num_tokens - 1)).reshape(num_tokens - 1, -1).T
    grid = grid[grid.sum(1) <= prefix_length]
    return np.concatenate([grid, prefix_length - grid.sum(1, keepdims=True)], axis=1)
