"""Checks of a source, a tuner or a network, our own or a reader's: each raises AssertionError that says what is wrong.

They compare with what can be enumerated or differentiated, on small sizes, in seconds. Letters in shapes: B sequences,
N length, K tokens.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.stats import chisquare

from bayesprompt.measures.regret import log_loss
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.settings import make_key
from bayesprompt.tuning.tuners import Tuner

_TOLERANCE = 1e-4  # float32


def check_source(source: Any, length: int = 4, sequences: int = 50_000, seed: int = 0) -> None:
    """Check that a source samples what its Bayes predictor predicts, in the form that `fit` and `jax.jit` need.

    All K ** `length` sequences are enumerated: their probabilities under `bayes_log_probs` (Eq. 1-2) must sum to 1,
    agree with the frequencies of `sequences` samples (a chi-squared test that a right source fails once in a million),
    and with the mean over sampled latents of `oracle_log_probs`.
    """
    K, key = source.num_tokens, make_key(seed)
    assert isinstance(K, int) and K >= 2, f"num_tokens = {K}: must be an integer >= 2"
    for leaf in jax.tree.leaves(source):
        assert np.asarray(leaf).dtype.kind in "fiub", f"a leaf of {source} is {type(leaf).__name__}: must be an array"
    tokens, latent = jax.jit(lambda source, key: source.sample(key, sequences, length))(source, key)
    again, _ = source.sample(key, sequences, length)
    assert tokens.shape == (sequences, length), f"tokens of shape {tokens.shape}: must be {(sequences, length)}"
    assert tokens.dtype == jnp.int32 and (tokens == again).all(), "samples must be int32, and the same inside jax.jit"
    assert ((tokens >= 0) & (tokens < K)).all(), f"tokens must lie in 0..{K - 1}"
    every = np.array(list(itertools.product(range(K), repeat=length)), np.int32)
    rows = np.asarray(source.bayes_log_probs(every), np.float64)
    assert rows.shape == (*every.shape, K), f"bayes_log_probs of shape {rows.shape}: must be {(*every.shape, K)}"
    for n in range(length):
        alike = np.exp(rows[:, n]).reshape(K**n, -1, K)  # sequences that begin with the same n tokens lie together
        assert _same(alike, alike[:, :1]), f"row {n} must depend on the tokens before it only"
    joint = np.exp(-log_loss(rows, every).sum(-1))
    assert abs(joint.sum() - 1) < 1e-6, f"all sequences have probability {joint.sum()}: must be 1"
    counts = np.bincount(np.asarray(tokens) @ K ** np.arange(length)[::-1], minlength=len(every))
    assert counts[joint < 1e-12].sum() == 0, "a sequence came up that the Bayes predictor rules out"
    _agree(counts, joint * sequences)
    few = jax.tree.map(lambda x: np.asarray(x[:500]), latent)
    for text, prob in zip(every, joint, strict=True):
        repeated = np.tile(text, (500, 1))
        each = np.exp(-log_loss(source.oracle_log_probs(repeated, few), repeated).sum(-1))
        error = 6 * each.std() / np.sqrt(500) + 1e-9
        assert abs(each.mean() - prob) <= error, f"oracle and Bayes predictor disagree on {text.tolist()}"


def _agree(counts: np.ndarray, expected: np.ndarray) -> None:
    """Pool rare sequences, and compare what is left."""
    order = np.argsort(-expected)
    counts, expected = counts[order], expected[order]
    often = max(1, int((expected >= 10).sum()))
    pooled = [np.append(x[:often], x[often:].sum()) for x in (counts, expected)]
    kept = pooled[1] > 1e-9 * counts.sum()
    p = chisquare(pooled[0][kept], pooled[1][kept] * pooled[0][kept].sum() / pooled[1][kept].sum()).pvalue
    assert kept.sum() < 2 or p > 1e-6, f"samples do not have the Bayes predictor's frequencies (p = {p:.1e})"


def check_predictor(predictor: Predictor, params: Params | None = None, length: int = 6, seed: int = 0) -> None:
    """Check that a network is a sequential predictor: distributions over K tokens, each from the tokens before it."""
    key, K = make_key(seed), predictor.architecture.num_tokens
    params = predictor.init(key) if params is None else params
    tokens = jax.random.randint(key, (3, length), 0, K)
    log_probs = predictor.apply(params, tokens)
    n = log_probs.shape[1]
    assert log_probs.shape == (3, n, K) and 1 <= n <= length, f"log-probabilities of shape {log_probs.shape}"
    assert _same(jnp.exp(log_probs).sum(-1), 1.0), "each row must be log-probabilities that sum to 1"
    assert _same(jax.jit(predictor.apply)(params, tokens), log_probs), "must be the same inside jax.jit"
    alone = jax.vmap(lambda row: predictor.apply(params, row[None])[0])(tokens)
    assert _same(alone, log_probs), "each sequence must be predicted by itself (jax.vmap)"
    for place in range(length):
        changed = predictor.apply(params, tokens.at[:, place].set((tokens[:, place] + 1) % K))
        seen = max(0, place + 1 - (length - n))  # rows that predict this token, and those before it
        assert _same(changed[:, :seen], log_probs[:, :seen]), f"row {seen - 1} must not see token {place}"
    state = predictor.prompt(params, NO_PREFIX, length)
    losses = predictor.token_losses(params, state, tokens)
    own = log_loss(log_probs, tokens[:, length - n :])
    assert _same(losses, own), "token_losses must be what `predict` gives the tokens"


def check_tuner(tuner: Tuner, predictor: Predictor, params: Params | None = None, at_start: bool = False) -> None:
    """Check that a tuner's phi is float arrays that enter the model, and that the loss has a gradient in it.

    With `at_start`, the model that phi stands for at its start must predict as the base model does.
    """
    key, K = make_key(0), predictor.architecture.num_tokens
    params = predictor.init(key) if params is None else params
    phi = tuner.init(key, params)
    assert jax.tree.leaves(phi), "phi must have an array to learn"
    for leaf in jax.tree.leaves(phi):
        assert jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating), "phi must be float arrays"
    several = jax.vmap(tuner.init, (0, None))(jax.random.split(key, 2), params)
    assert all(x.shape[0] == 2 for x in jax.tree.leaves(several)), "init must work under jax.vmap"
    model, prefix = tuner.inject(params, phi)
    assert isinstance(prefix, Prefix), "inject must return parameters and a Prefix"
    assert jax.tree.map(jnp.shape, model) == jax.tree.map(jnp.shape, params), "inject must keep the parameters' shapes"
    tokens = jax.random.randint(jax.random.fold_in(key, 1), (4, 8), 0, K)
    before = predictor.apply(params, tokens)
    assert not at_start or _same(predictor.apply(model, tokens, prefix), before), "must start as the base model"

    def loss(phi: Any) -> jax.Array:
        params_, prefix_ = tuner.inject(params, phi)
        return -predictor.apply(params_, tokens, prefix_).max(-1).sum()

    slope = ravel_pytree(jax.jit(jax.grad(loss))(phi))[0]
    assert np.isfinite(slope).all() and (slope != 0).any(), "the loss must have a finite gradient in phi that is not 0"


def _same(a: Any, b: Any) -> bool:
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE))
