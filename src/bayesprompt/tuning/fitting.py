"""One compiled loop for pretraining and for every gradient tuner: draw data, take a step, again.

Repetitions, and where devices are left parts of a batch, are spread over accelerators, hosts, or the cores of a CPU.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from bayesprompt.checks import UserError, check_settings
from bayesprompt.devices import SHARED_OUT, WHOLE, gather, make_mesh, padded, part_size, spread
from bayesprompt.files import save_arrays
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.settings import fixed
from bayesprompt.sources.base import Sampler
from bayesprompt.tuning.accepted import check_call, check_network, check_source
from bayesprompt.tuning.checkpoints import resume, run_record
from bayesprompt.tuning.tuners import Tuner


class DivergedError(UserError):
    """A loss, or what is learned, stopped being finite."""


@dataclass(frozen=True)
class FitConfig:
    """Optimisation settings: Adam with a constant learning rate, gradients clipped by global norm."""

    steps: int = 1000
    batch: int = 256
    length: int = 50
    learning_rate: float = 5e-3
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for settings that are not positive; some may be 0."""
        check_settings(self, ("steps", "batch", "length"), self.may_be_zero)

    may_be_zero: ClassVar[tuple[str, ...]] = ()
    # Most steps between two looks from the host (progress, checkpoint, finite-loss check).
    max_chunk: ClassVar[int] = 25
    dropout = False  # whether the network draws dropout masks

    def make_optimizer(self) -> optax.GradientTransformation:
        """Return the optimiser of one repetition."""
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(self.learning_rate))

    def loss(self, losses: Float[Array, "B n"]) -> Float[Array, ""]:
        """Return the sum over sequences, in nats a sequence, of the losses of n predicted tokens."""
        return losses.sum()


@dataclass(frozen=True)
class AdamWConfig(FitConfig):
    """AdamW as minGPT's family uses it: moments (0.9, 0.95), losses in nats a token, weight decay where it belongs.

    Decayed is what is learned, but no bias, no LayerNorm, no embedding. `clip_each`: each array's gradient is clipped
    by its own norm instead of all by theirs together. `dropout`: the network draws masks.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("weight_decay", "clip_each", "dropout")  # False is 0
    max_chunk: ClassVar[int] = 250
    weight_decay: float = 0.1
    clip_each: bool = False
    dropout: bool = False

    def make_optimizer(self) -> optax.GradientTransformation:
        """Return the optimiser of one repetition."""
        clip = clip_each(self.clip) if self.clip_each else optax.clip_by_global_norm(self.clip)
        adamw = optax.adamw(self.learning_rate, 0.9, 0.95, weight_decay=self.weight_decay, mask=_decays)
        return optax.chain(clip, adamw)

    def loss(self, losses: Float[Array, "B n"]) -> Float[Array, ""]:
        """Return the sum over sequences of the mean loss of n predicted tokens."""
        return losses.mean(axis=1).sum()


def clip_each(largest: float) -> optax.GradientTransformation:
    """Clip each array's gradient by its own norm."""
    clip = optax.clip_by_global_norm(largest)
    return optax.stateless(lambda grad, _: jax.tree.map(lambda g: clip.update(g, clip.init(g))[0], grad))


def _decays(phi: Any) -> Any:
    kept = {"bias", "scale", "tokens", "positions"}
    return jax.tree_util.tree_map_with_path(lambda path, _: not path or getattr(path[-1], "key", None) not in kept, phi)


class Fit(NamedTuple):
    """What a fit returns: phi with a leading repetition axis, and the training loss (R, steps) in nats a sequence."""

    phi: Any
    loss: Float[np.ndarray, "R steps"]


@fixed()
def fit(
    predictor: Predictor,
    tuner: Tuner,
    base: Params,
    source: Sampler,
    config: FitConfig,
    key: Array,
    repetitions: int = 1,
    checkpoint: Path | str | None = None,
    progress: Callable[[int, float], bool | None] | None = None,
    sources: bool = False,
) -> Fit:
    """Minimise the expected cumulative log-loss on `source` over the tuner's phi (Eq. 5 and 7), R repetitions at once.

    Repetition r starts from and draws its data with fold_in(key, r). With `sources`, every leaf of `source` has R rows:
    a source for each repetition. With `checkpoint` (a file, on a disk that all hosts see), the run continues where it
    was killed, with identical numbers on one CPU machine; the caller deletes the file. A damaged checkpoint is kept
    under another name, and the run starts anew. `progress(step, loss)` is called between chunks of steps.

    Raises ValueError for parameters or a source that do not fit the network, OtherRunError for the checkpoint of a run
    that differs in anything, and DivergedError where a loss, or what a step leaves behind, is not finite; the last good
    checkpoint stays.
    """
    key, checkpoint = check_call(predictor, tuner, config, key, repetitions, checkpoint)
    check_network(predictor, base)
    check_source(source, predictor.architecture.num_tokens, repetitions if sources else None)
    base, source = jax.device_get(jax.tree.map(jnp.asarray, (base, source)))
    record = run_record(predictor, tuner, base, source, config, key, repetitions) if checkpoint else {}
    mesh = make_mesh(repetitions, config.batch, predictor.cores)
    side_by_side, everywhere = NamedSharding(mesh, SHARED_OUT), NamedSharding(mesh, WHOLE)
    number = padded(repetitions, mesh.shape["repetition"])

    def fill(tree):
        """Spread repetitions over the devices, the first ones once more where they do not divide evenly."""
        return jax.tree.map(lambda x: jax.device_put(np.resize(x, (number, *x.shape[1:])), side_by_side), tree)

    def own(tree):
        return jax.tree.map(lambda x: x[:repetitions], gather(tree))

    run, start = compiled_loop(predictor, tuner, config, mesh, sources)
    keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)), out_shardings=side_by_side)(key, np.arange(number))
    give = functools.partial(jax.tree.map, lambda x: jax.device_put(x, everywhere))
    base, source = give(base), fill(source) if sources else give(source)
    carry, loss = start(base, keys), np.zeros((repetitions, 0), np.float32)
    if checkpoint is not None and (kept := resume(checkpoint, own(carry), repetitions, record)) is not None:
        carry, loss = fill(kept[0]), kept[1]
    while (done := loss.shape[1]) < config.steps:
        carry, new = run(base, source, carry, keys, done, steps=min(config.max_chunk, config.steps - done))
        new = own(new)
        if not np.isfinite(new).all():
            step = done + int(np.argmin(np.isfinite(new).all(0))) + 1
            where = f"; the checkpoint of step {done} is kept, and the same call resumes there"
            raise DivergedError(
                f"loss = {new[:, step - done - 1].tolist()} at step {step}: must stay finite; lower learning_rate = "
                f"{config.learning_rate}{where if checkpoint is not None and done else ''}"
            )
        loss = np.concatenate([loss, new], axis=1)
        if checkpoint is not None:
            kept = own(carry)  # on every host
            if jax.process_index() == 0:
                save_arrays(checkpoint, (kept, loss), record)
        if progress is not None and progress(loss.shape[1], float(np.median(new[:, -1]))) is True:
            break
    return Fit(own(carry[0]), loss)


@functools.lru_cache
def compiled_loop(
    predictor: Predictor, tuner: Tuner, config: FitConfig, mesh: Mesh, sources: bool = False
) -> tuple[Callable, Callable]:
    """Return (run, start): jitted functions shared by all sources, base parameters and keys.

    start(base, keys) -> carry; run(base, source, carry, keys, done, steps) -> carry, losses (R, steps) of so many steps
    more. The last loss is NaN where the carry is not finite.
    """
    optimizer = config.make_optimizer()
    share = config.batch // mesh.shape["batch"]
    part = part_size(share, predictor.sequences_in_cache)

    def loss_and_grad(base, phi, tokens, masks):
        def prepare(phi):
            params, prefix = tuner.inject(base, phi)
            return params, predictor.prompt(params, prefix, config.length, **masks.get("prompt", {}))

        def part_loss(model, tokens, mask):
            return config.loss(predictor.token_losses(*model, tokens, **mask)) / config.batch

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(part_loss)(model, *part)), None

        # The prompt is read once for all parts of the batch; its gradient is summed over them and pulled back once.
        # The gradients of what phi does not reach, frozen weights say, are written down here; XLA computes none.
        model, pull_back = jax.vjp(prepare, phi)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), model))
        parts = (tokens.reshape(-1, part, config.length), masks.get("parts", {}))
        (loss, grad), _ = jax.lax.scan(add_part, zeros, parts)
        return loss, pull_back(grad)[0]

    def draw_masks(key, column):
        # What the prompt leaves behind has one mask, the same on every device; each part of the batch has its own.
        if not config.dropout:
            return {}
        places = 1 + column * (share // part) + jnp.arange(share // part)
        parts = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        return {"prompt": {"key": jax.random.fold_in(key, 0)}, "parts": {"key": parts}}

    def run_one(base, source, carry, key, places):
        def step(carry, step):
            phi, moments = carry
            # Every device draws the whole batch, so that the data do not depend on their number, and reads its share.
            tokens, _ = source.sample(jax.random.fold_in(jax.random.fold_in(key, 1), step), config.batch, config.length)
            column = jax.lax.axis_index("batch")
            tokens = jax.lax.dynamic_slice_in_dim(tokens, column * share, share)
            masks = draw_masks(jax.random.fold_in(jax.random.fold_in(key, 2), step), column)
            loss, grad = jax.lax.psum(loss_and_grad(base, phi, tokens, masks), "batch")
            updates, moments = optimizer.update(grad, moments, phi)
            return (optax.apply_updates(phi, updates), moments), loss

        carry, losses = jax.lax.scan(step, carry, places)
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(carry)]).all()
        return carry, losses.at[-1].set(jnp.where(finite, losses[-1], jnp.nan))

    def run_share(base, source, carry, keys, places):
        def one(own, carry, key):
            return run_one(base, own if sources else source, carry, key, places)

        own = source if sources else {}
        # One repetition after the other keeps a CPU's cache; a GPU, or weights that no cache holds, want all at once.
        if jax.default_backend() == "cpu" and predictor.cores != "nothing":
            return jax.lax.map(lambda x: one(*x), (own, carry, keys))
        return jax.vmap(one)(own, carry, keys)

    def start(base, keys):
        def start_one(key):
            phi = tuner.init(jax.random.fold_in(key, 0), base)
            return phi, optimizer.init(phi)

        return jax.vmap(start_one)(keys)

    spread_run = spread(run_share, mesh, WHOLE, SHARED_OUT if sources else WHOLE, SHARED_OUT, SHARED_OUT, WHOLE)
    chunk = min(config.max_chunk, config.steps)

    def run(base, source, carry, keys, done, steps=chunk):
        return spread_run(base, source, carry, keys, done + jnp.arange(steps))

    return jax.jit(run, static_argnames="steps", donate_argnums=2), jax.jit(spread(start, mesh, WHOLE, SHARED_OUT))


def step_flops(architecture: Any, batch: int, length: int, weights_move: bool = True) -> float:
    """Return the nominal floating-point operations of one training step: the matrix products of every token.

    Backward costs as much again as forward for the activations, and once more for the weights if they are learned. What
    is looked up here instead of multiplied counts all the same, so that codes can be compared.
    """
    return float((3 if weights_move else 2) * architecture.token_flops(length) * batch * length)
