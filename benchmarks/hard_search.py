"""How long does the search through all hard prefixes of length 6 take (2048 sequences of length 50)?"""

import functools

import jax
import jax.numpy as jnp
from harness import arguments, describe, finish, matrix_rate, paired, public_code, public_predictor

from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import all_hard_prefixes
from bayesprompt.sources.coins import Coin
from bayesprompt.tuning.fitting import step_flops
from bayesprompt.tuning.hard_search import hard_search

LENGTH, PREFIX_LENGTH = 50, 6


def public_search(path, architecture, tokens):
    """Return a call that scores each prefix with the public code, whose predictor reads it before every sequence."""
    lib = public_code(path)
    predictor = public_predictor(lib, architecture)
    onehot = jax.nn.one_hot(tokens, 2)
    params = predictor.init(jax.random.key(0), onehot[:2])
    loss = jax.jit(lib.functions.make_loss_fn(predictor), static_argnums=2)
    prefixes = jax.nn.one_hot(all_hard_prefixes(PREFIX_LENGTH, 2), 2)
    return lambda: jnp.stack([loss(params, onehot, "prepend", prefix) for prefix in prefixes])


if __name__ == "__main__":
    options, rows = arguments(__doc__, sequences=[2048]), []
    tokens = Coin(0.2).sample(jax.random.key(2), options.sequences[0], LENGTH)[0]
    for architecture in (Transformer(), LSTM()):
        predictor = make_predictor(architecture)
        params = predictor.init(jax.random.key(0))
        calls = [functools.partial(hard_search, predictor, params, PREFIX_LENGTH, tokens)]
        if options.thunnini is not None:
            calls.append(public_search(options.thunnini, architecture, tokens))
        seconds = paired(min(options.rounds, 3), *calls)
        flops = 2**PREFIX_LENGTH * step_flops(architecture, len(tokens), LENGTH) / 3  # forward alone
        row = {
            "case": f"{type(architecture).__name__} HardPT", "length": LENGTH, "repetitions": 1, "seconds": seconds[0],
            "flops_per_second": flops / seconds[0], "fraction_of_peak": flops / seconds[0] / matrix_rate(),
        }  # fmt: skip
        if len(seconds) > 1:
            row |= {"public_seconds": seconds[1], "ratio": seconds[1] / seconds[0]}
        print(describe(row), flush=True)
        rows.append(row)
    finish(options, __file__, rows)
