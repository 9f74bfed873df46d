"""The contract of a source: what is written in its documentation is enough."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy.stats import chisquare

from bayesprompt.sources import Coin, Digits, Sampler, Source, one_task
from bayesprompt.sources.base import choose, log

KEY = jax.random.key(2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Die:
    """The documentation's example."""

    faces: Float[Array, " K"]
    num_tokens = property(lambda self: self.faces.shape[-1])

    def sample(self, key, batch, length):
        return jax.random.categorical(key, jnp.log(self.faces), shape=(batch, length)), None


def test_what_is_sampled_from_and_what_is_a_source():
    die = Die(jnp.array([0.2, 0.3, 0.5]))
    assert isinstance(die, Sampler) and not isinstance(die, Source)
    assert isinstance(one_task("add 1"), Sampler) and not isinstance(one_task("add 1"), Source)
    assert isinstance(Coin(0.2), Source) and not isinstance(object(), Sampler)


def test_a_plain_dataclass_runs_under_jit_and_vmap():
    dice = Die(jnp.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]))
    tokens = jax.jit(jax.vmap(lambda die: die.sample(KEY, 50, 4)[0]))(dice)
    assert (tokens[0] == 1).all() and set(np.unique(tokens[1])) == {0, 2}


def test_tasks_on_digits_have_ten_tokens_however_many_there_are():
    several = Digits(np.stack([one_task("add 1").weights, one_task("add 2").weights]))
    assert several.num_tokens == one_task("add 1").num_tokens == 10


@pytest.mark.parametrize("probs", [(0.2, 0.3, 0.5), (0.0, 1.0, 0.0), (0.5, 0.5, 0.0)])
def test_chosen_tokens_have_their_probabilities(probs):
    tokens = choose(jax.random.uniform(KEY, (30_000,)), jnp.array([probs]))
    observed = np.bincount(tokens, minlength=3)
    alive = np.array(probs) > 0
    assert tokens.dtype == jnp.int32 and observed[~alive].sum() == 0
    if alive.sum() > 1:
        assert chisquare(observed[alive], 30_000 * np.array(probs)[alive]).pvalue > 1e-4


def test_a_uniform_number_just_below_one_never_chooses_a_face_of_probability_0():
    probs = jnp.array([0.1] * 10 + [0.0])
    assert int(choose(jnp.float32(1 - 2**-24), probs)) == 9


def test_the_logarithm_of_0_is_minus_infinity_without_a_warning():
    np.testing.assert_array_equal(log(np.array([0.0, 1.0])), [-np.inf, 0])
