"""Tasks on ten digits: sort them, add to them, or both, or count them (Section 5 of Petrov, Torr & Bibi 2024).

A row of tokens is ten digits and their answer of ten more. Rows are drawn inside the compiled step, by the rejection
rule of the papers' public code: enough rows for nearly every sequence to find one that is kept, again for the others.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bayesprompt.checks import UserError

NUM_TOKENS = 10  # inputs are 0..7, three bits each, so that 2 can be added
SIZE = 10  # digits in an input, and in its answer
# An input with more distinct digits than this is kept with probability 1/2.
FEW_DISTINCT = 5
# Draws that are looked at together: nearly always one of them is kept (each is with probability 0.50).
CANDIDATES = 12

TASKS = ("ascending", "descending", "add 1", "add 2", "ascending + 1", "double histogram")
PRETRAINING_TASKS = TASKS[:4]

Rows = Int[Array | np.ndarray, "*B 10"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["held_out"])
@dataclass(frozen=True)
class Digits:
    """A source of inputs with their answers, from one task or several.

    weights: (6,) relative frequencies of TASKS, an array (with a leading axis: a source for each repetition of a fit).
    held_out: draw the quarter of inputs that is not trained on.
    """

    weights: Float[Array | np.ndarray, "*sources tasks"]
    held_out: bool = False
    num_tokens: ClassVar[int] = NUM_TOKENS

    def sample(
        self, key: PRNGKeyArray, batch: int, length: int = 2 * SIZE
    ) -> tuple[Int[Array, "{batch} {length}"], Int[Array, " {batch}"]]:
        """Draw inputs with their answers, and the index of each one's task; raises ValueError unless length is 20."""
        if length != 2 * SIZE:
            raise UserError(f"length = {length}: must be {2 * SIZE}, the digits and their answer")
        for_task, for_rows = jax.random.split(key)
        task = jax.random.categorical(for_task, jnp.log(jnp.asarray(self.weights, jnp.float32)), shape=(batch,)).astype(
            jnp.int32
        )
        inputs = draw_inputs(for_rows, task, self.held_out)
        return jnp.concatenate([inputs, answer(inputs, task)], axis=1), task


def one_task(*tasks: str, held_out: bool = False) -> Digits:
    """Return the source of one task, or of several equally often; raises ValueError for an unknown one."""
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"task = {task}: must be one of {', '.join(TASKS)}")
    return Digits(np.array([task in tasks for task in TASKS], np.float32), held_out)


def draw_inputs(key: PRNGKeyArray, task: Int[Array, " B"], held_out: bool) -> Int[Array, "B 10"]:
    """Draw inputs until each is kept: by the coin for many distinct digits, the split, and an answer below 10."""
    batch = len(task)

    def draw(carry):
        number, inputs, kept = carry
        # 32 fair bits: three for each of the ten digits, and one for the coin.
        bits = jax.random.bits(jax.random.fold_in(key, number), (batch, CANDIDATES), jnp.uint32)
        new = jnp.stack([(bits >> 3 * i) & 7 for i in range(SIZE)], axis=-1).astype(jnp.int32)
        # Ten equal digits have a count of 10, for which there is no token.
        right = (is_held_out(new) == held_out) & ((task[:, None] != 5) | (new != new[..., :1]).any(-1))
        right &= (num_distinct(new) <= FEW_DISTINCT) | (bits >> 31 == 1)
        first = jnp.take_along_axis(new, right.argmax(1)[:, None, None], axis=1)[:, 0]
        return number + 1, jnp.where(kept[:, None], inputs, first), kept | right.any(1)

    start = (0, jnp.zeros((batch, SIZE), jnp.int32), jnp.zeros(batch, bool))
    return jax.lax.while_loop(lambda carry: ~carry[2].all(), draw, start)[1]


def num_distinct(inputs: Rows) -> Int[Array | np.ndarray, "*B"]:
    """Return how many different digits an input has."""
    inputs = jnp.asarray(inputs)
    return jax.lax.population_count(jax.lax.reduce_or(1 << inputs, (inputs.ndim - 1,)))


def is_held_out(inputs: Rows) -> Bool[Array | np.ndarray, "*B"]:
    """Tell by a hash whether an input belongs to the quarter that is not trained on."""
    inputs = jnp.asarray(inputs)
    shifts = jnp.expand_dims(3 * jnp.arange(SIZE, dtype=jnp.uint32), tuple(range(inputs.ndim - 1)))
    number = (inputs.astype(jnp.uint32) << shifts).sum(-1, dtype=jnp.uint32)
    return mixed(number) % 4 == 0


def mixed(number: Array) -> Array:
    """Return the finaliser of MurmurHash3: every bit of the input changes every bit of the result half of the time."""
    number = (number ^ (number >> 16)) * jnp.uint32(0x85EBCA6B)
    number = (number ^ (number >> 13)) * jnp.uint32(0xC2B2AE35)
    return number ^ (number >> 16)


def answer(inputs: Rows, task: Int[Array | np.ndarray, "*B"] | int) -> Rows:
    """Return the answer of TASKS[task] to each input."""
    inputs = jnp.asarray(inputs)
    ascending = jnp.sort(inputs)
    counts = (inputs[..., None] == inputs[..., None, :]).sum(-1, dtype=jnp.int32)
    answers = (ascending, ascending[..., ::-1], inputs + 1, inputs + 2, ascending + 1, counts)
    chosen = jnp.broadcast_to(jnp.asarray(task)[..., None], inputs.shape)
    return jnp.select([chosen == i for i in range(len(TASKS))], answers)


def with_answer(inputs: Int[Array | np.ndarray, "*B 10"], task: str) -> Int[np.ndarray, "*B 20"]:
    """Return inputs followed by a task's answers to them."""
    return np.concatenate([inputs, np.asarray(answer(inputs, TASKS.index(task)))], axis=-1)
