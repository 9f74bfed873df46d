"""Flips of a coin as text: what the language model believes of them, before and after a soft prompt."""

from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from bayesprompt.lab.experiment import Run
from bayesprompt.measures.regret import excess_log_loss
from bayesprompt.mechanism.language.labels import SHORT, log_probs_of, tuned
from bayesprompt.mechanism.language.tasks import LANGUAGE_SCALES, written_flips
from bayesprompt.models.gguf import the_model
from bayesprompt.models.llama import make_llama
from bayesprompt.sources.coins import BetaCoins, Coin

COINS = {"random coins": BetaCoins(), "bias 0.2": Coin(0.2)}


def compute(run: Run) -> xr.Dataset:
    """Let the model read flips of random coins and of the target, before or after soft prompting to the target."""
    cell, model, at = run.cell, the_model(), LANGUAGE_SCALES[run.cell.scale]
    source, settings = written_flips(model, COINS["bias 0.2"]), cell.experiment.tuning(cell.method, cell.scale)
    start, flips = len(source.header), settings.length if settings else 0
    predictor = make_llama(replace(model.sizes, sequences_in_cache=SHORT), answer=max(1, flips))
    prefix, extra = tuned(run, predictor, source, start + flips)
    heads, mass, seen = [], [], []
    for coins in COINS.values():
        text = written_flips(model, coins)
        tokens = np.asarray(text.sample(cell.key("evaluate"), at.sequences, start + at.flips)[0])
        found = log_probs_of(model, tokens, np.asarray(text.faces), at.flips, prefix).astype(np.float64)
        total = np.logaddexp(*np.moveaxis(found, -1, 0))
        heads.append(np.exp(found[..., 0] - total))
        mass.append(np.exp(total))
        seen.append(tokens[:, start:] == text.faces[0])
    axes, summary = ("coins", "sequence", "n"), f"probability of a flip {np.mean(mass):.3f} on average"
    return xr.Dataset(extra, attrs={"summary": summary}).assign(
        heads=(axes, np.stack(heads).astype(np.float32), {"units": "probability of heads, given a flip"}),
        mass=(axes, np.stack(mass).astype(np.float32), {"units": "probability of any flip"}),
        flipped_heads=(axes, np.stack(seen).astype(np.int8)),
    )


def _flips(dataset: xr.Dataset, coins: str) -> tuple[Int[np.ndarray, "B n"], Float[np.ndarray, "B n"]]:
    """Return the flips of these coins, heads as token 0, and the model's beliefs in heads, given a flip."""
    at = list(COINS).index(coins)
    return 1 - dataset.flipped_heads.values[at].astype(int), dataset.heads.values[at].astype(float)


def flips_excess(dataset: xr.Dataset, coins: str, over: str = "random coins") -> Float[np.ndarray, " n"]:
    """Return the mean cumulative log-loss of the beliefs over the Bayes predictor of the coins `over`, nats.

    That of random coins is Laplace's rule.
    """
    tokens, heads = _flips(dataset, coins)
    beliefs = np.log(np.stack([heads, 1 - heads], axis=-1))
    return excess_log_loss(beliefs, tokens, COINS[over].bayes_log_probs(tokens)).mean


def beside_laplace(dataset: xr.Dataset, coins: str, n: int) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Return Laplace's rule and the model's belief in heads after n flips of each sequence."""
    tokens, heads = _flips(dataset, coins)
    return np.exp(COINS["random coins"].bayes_log_probs(tokens))[:, n, 0], heads[:, n]
