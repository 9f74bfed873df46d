"""The sizes of a LLaMA network, and the shapes of its parameters."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bayesprompt.checks import UserError
from bayesprompt.models.layers import check_sizes
from bayesprompt.models.predictor import Params


@dataclass(frozen=True)
class Llama:
    """Sizes of a LLaMA network; the defaults are SmolLM2-135M's."""

    num_tokens: int = 49_152
    embed_dim: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3
    num_layers: int = 30
    mlp_dim: int = 1536
    context: int = 8192
    rope_base: float = 1e5
    norm_epsilon: float = 1e-5
    tied: bool = True  # the unembedding is the embedding
    head_size: int | None = None  # of the heads' own; None for embed_dim / num_heads
    rope_factors: tuple[float, ...] = ()  # by which each angle of the rotation is divided; () for none
    sequences_in_cache: int = 4  # at a time in training: what is kept of 256 tokens for the gradient is 160 MB

    def __post_init__(self) -> None:
        """Raise UserError for sizes below 1, heads that do not divide the width, or a rotation of no angle."""
        check_sizes(self, but=("rope_base", "norm_epsilon", "tied", "head_size", "rope_factors"))
        if self.head_size is not None and self.head_size * self.num_heads == self.embed_dim:
            object.__setattr__(self, "head_size", None)  # so that equal networks have equal sizes
        if self.head_size is None and self.embed_dim % (2 * self.num_heads):
            raise UserError(f"embed_dim = {self.embed_dim}: must be a multiple of 2 * num_heads = {2 * self.num_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"head_size = {self.head_size}: must be even and >= 2")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads = {self.num_heads}: must be a multiple of num_kv_heads = {self.num_kv_heads}")
        if not 1 < self.rope_base < float("inf"):
            raise UserError(f"rope_base = {self.rope_base}: must be > 1 and finite")
        if not 0 < self.norm_epsilon < 1:
            raise UserError(f"norm_epsilon = {self.norm_epsilon}: must lie in (0, 1)")
        if self.rope_factors and len(self.rope_factors) != self.head_dim // 2:
            raise UserError(
                f"rope_factors = {len(self.rope_factors)} of them: must be {self.head_dim // 2}, one an angle"
            )
        if not all(0 < factor < float("inf") for factor in self.rope_factors):
            raise UserError(f"rope_factors = {self.rope_factors}: must be > 0 and finite")

    @property
    def head_dim(self) -> int:
        """Coordinates of a head's queries, keys and values."""
        return self.embed_dim // self.num_heads if self.head_size is None else self.head_size

    def token_flops(self, length: int) -> int:
        """Return the nominal floating-point operations of one token's matrix products, forward, at this length."""
        heads_dim, kv_dim = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        weights = self.embed_dim * (2 * heads_dim + 2 * kv_dim + 3 * self.mlp_dim)
        return self.num_layers * (2 * weights + 4 * length * heads_dim) + 2 * self.embed_dim * self.num_tokens


def shapes(sizes: Llama) -> Params:
    """Return the shapes of the parameters; those of the blocks are stacked, layers first."""
    width, heads_dim, kv_dim = sizes.embed_dim, sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    kernels = {
        "query": (width, heads_dim),
        "key": (width, kv_dim),
        "value": (width, kv_dim),
        "attention_output": (heads_dim, width),
        "mlp_gate": (width, sizes.mlp_dim),
        "mlp_up": (width, sizes.mlp_dim),
        "mlp_down": (sizes.mlp_dim, width),
        "attention_norm": (width,),
        "mlp_norm": (width,),
    }
    rows = (sizes.num_tokens, width)
    torso = {name: (sizes.num_layers, *shape) for name, shape in kernels.items()}
    unembedding = {"norm": (width,)} | ({} if sizes.tied else {"rows": rows})
    found = {"embedding": rows, "torso": torso, "unembedding": unembedding}
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return jax.tree.map(float32, found, is_leaf=lambda x: isinstance(x, tuple))
