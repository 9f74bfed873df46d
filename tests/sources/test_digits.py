"""The tasks' answers, and the rejection rule against its definition."""

import collections

import jax
import numpy as np
import pytest

from bayesprompt.sources import digits
from bayesprompt.sources.digits import PRETRAINING_TASKS, TASKS, answer, is_held_out, num_distinct, one_task

DRAWN = 40_000


def draw(source, seed=0, size=DRAWN):
    return jax.device_get(jax.jit(source.sample, static_argnums=(1, 2))(jax.random.key(seed), size, 20))


@pytest.mark.parametrize("task", TASKS)
def test_answers(task):
    tokens, index = draw(one_task(task), size=50)
    assert (index == TASKS.index(task)).all()
    solve = {
        "ascending": sorted,
        "descending": lambda row: sorted(row, reverse=True),
        "add 1": lambda row: [x + 1 for x in row],
        "add 2": lambda row: [x + 2 for x in row],
        "ascending + 1": lambda row: sorted(x + 1 for x in row),
        "double histogram": lambda row: [collections.Counter(row)[x] for x in row],
    }[task]
    for row in tokens.tolist():
        assert row[10:] == solve(row[:10])


def test_the_mixture_has_a_quarter_of_each_task():
    _, task = draw(one_task(*PRETRAINING_TASKS))
    share = np.bincount(task, minlength=6) / DRAWN
    np.testing.assert_allclose(share, [0.25] * 4 + [0, 0], atol=4 * np.sqrt(0.25 * 0.75 / DRAWN))


def test_distinct_digits_and_the_hash_on_all_inputs_of_few_digits():
    grid = np.indices((3,) * 10, dtype=np.int32).reshape(10, -1).T
    np.testing.assert_array_equal(num_distinct(grid), [len(set(row)) for row in grid.tolist()])
    held = np.asarray(is_held_out(grid))
    assert abs(held.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(grid))


@pytest.mark.parametrize("held_out", [False, True])
def test_drawn_inputs_follow_the_rejection_rule(held_out):
    # The rule as the public code states it: uniform digits; a coin sends back those with many distinct digits.
    rng = np.random.default_rng(0)
    uniform = rng.integers(8, size=(400_000, 10), dtype=np.int32)
    few = np.array(num_distinct(uniform)) <= 5
    kept = uniform[few | (rng.random(len(few)) < 0.5)]
    kept = kept[np.array(is_held_out(kept)) == held_out]
    wanted = np.bincount(np.array(num_distinct(kept)), minlength=9) / len(kept)
    tokens, _ = draw(one_task("ascending", held_out=held_out))
    inputs = tokens[:, :10]
    assert (np.array(is_held_out(inputs)) == held_out).all()
    found = np.bincount(np.array(num_distinct(inputs)), minlength=9) / DRAWN
    error = np.sqrt(wanted * (1 - wanted) * (1 / DRAWN + 1 / len(kept)))
    assert (np.abs(found - wanted) <= 4.5 * error + 1e-12).all()
    assert abs(found[:6].sum() - 0.49) < 0.01
    each = np.stack([np.bincount(column, minlength=8) for column in inputs.T]) / DRAWN
    np.testing.assert_allclose(each, 1 / 8, atol=4.5 * np.sqrt(7 / 64 / DRAWN))


def test_a_count_of_ten_is_drawn_again(monkeypatch):
    # With all digits equal at every second draw, the double histogram must not see them.
    bits = jax.random.bits

    def half(key, shape, dtype):
        drawn = bits(key, shape, dtype)
        return drawn * (drawn % 2 == 0)

    monkeypatch.setattr(digits.jax.random, "bits", half)
    # (Ten zeros are among the inputs held out.)
    tokens = one_task("double histogram", held_out=True).sample(jax.random.key(0), 200, 20)[0]
    assert tokens.max() <= 9
    assert (np.asarray(tokens[:, :10]).std(axis=1) > 0).all()
    others = one_task("add 1", held_out=True).sample(jax.random.key(0), 200, 20)[0]
    assert (np.asarray(others[:, :10]).std(axis=1) == 0).any()


def test_the_same_key_gives_the_same_rows_and_more_candidates_no_others(monkeypatch):
    first = draw(one_task("add 2"), 5, 64)
    np.testing.assert_array_equal(first[0], draw(one_task("add 2"), 5, 64)[0])
    assert (first[0] != draw(one_task("add 2"), 6, 64)[0]).any()
    monkeypatch.setattr(digits, "CANDIDATES", 1)  # one candidate a round: many rounds, the same rule
    tokens = one_task("add 2", held_out=True).sample(jax.random.key(5), 500, 20)[0]
    assert np.asarray(is_held_out(tokens[:, :10])).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="task = sideways: must be one of ascending"):
        one_task("sideways")
    with pytest.raises(ValueError, match="length = 12: must be 20"):
        one_task("add 1").sample(jax.random.key(0), 4, 12)


def test_answers_of_a_whole_batch_follow_their_tasks():
    inputs = np.array([[3, 1, 2, 0, 0, 0, 0, 0, 0, 7]] * 6, np.int32)
    rows = np.asarray(answer(inputs, np.arange(6)))
    assert rows[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3, 7]
    assert rows[1].tolist() == [7, 3, 2, 1, 0, 0, 0, 0, 0, 0]
    assert rows[5].tolist() == [1, 1, 1, 6, 6, 6, 6, 6, 6, 1]
