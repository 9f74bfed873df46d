"""JAX's process-wide settings: those that the package's numbers do not depend on, and those that are told with them."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp

from bayesprompt.checks import UserError

LOG = logging.getLogger("bayesprompt")
KEYS = "threefry2x32"  # the implementation of every key that the package makes
USUAL = "matrix products: default"  # what `told` says where nothing was chosen
_CONFIG: Any = jax.config  # its attributes are the settings here and now, in this thread

# False, 0 or empty unless someone chose otherwise, or not there in this version of JAX; each changes numbers, or at
# least their rounding.
_CHOICES = (
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_high_dynamic_range_gumbel",
)


def make_key(seed: int) -> jax.Array:
    """Return the random key of a seed from 0 to 2**32 - 1: `jax.random.key(seed)` under JAX's own default settings."""
    return jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl=KEYS)


def typed_key(key: Any) -> jax.Array:
    """Return a key as it is, or a legacy one (`jax.random.PRNGKey`) as the typed key of the same numbers.

    Raises ValueError for what is not one key.
    """
    try:
        typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    except (AttributeError, TypeError, ValueError):  # no array, or one of another shape or type
        raise UserError(f"key = {key}: must be a random key, as jax.random.key makes it") from None
    if typed.ndim:
        raise UserError(f"key = array of shape {typed.shape}: must be one random key")
    return typed


def x64(enabled: bool) -> Any:
    """Return a context with 64-bit types, or without them; its place moved in JAX 0.8."""
    where: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return where.enable_x64(enabled)


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Compute in 32 bits, under JAX's default promotion and random numbers, whatever the process has chosen.

    This is a context, or decorates a function. Without compilation (JAX_DISABLE_JIT) all works, and is said to be slow.
    """
    if _CONFIG.jax_disable_jit:
        _say_slow()
    promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with x64(False), jax.threefry_partitionable(True), promotion[0], promotion[1]:
        yield


@functools.cache
def _say_slow() -> None:
    LOG.warning("%s", "JAX_DISABLE_JIT = 1: nothing is compiled, so this takes many times as long")


def told() -> str:
    """Return the settings that change numbers and are the reader's to choose, in words."""
    chosen = {name.removeprefix("jax_"): getattr(_CONFIG, name, None) for name in _CHOICES}
    flags = os.environ.get("XLA_FLAGS", "").split()
    chosen["XLA_FLAGS"] = " ".join(f for f in flags if "host_platform_device_count" not in f)  # the cores: no numbers
    precision = _CONFIG.jax_default_matmul_precision or "default"
    others = [f"{name}: {value}" for name, value in chosen.items() if value]
    return "; ".join([f"matrix products: {precision}", *others])
