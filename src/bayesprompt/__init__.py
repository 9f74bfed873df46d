"""Prompting is conditioning a Bayesian predictor: the package behind the book.

The names here are the library: sources of sequences with exact Bayes predictors, networks, prefixes, tuning methods,
one training loop, regrets; and the stored results. Importing it changes nothing outside it.
"""

from typing import TYPE_CHECKING, Any

from bayesprompt.checks import UserError
from bayesprompt.measures.regret import best_hard_prompt, cumulative_regret, exact_regret, excess_log_loss
from bayesprompt.models.hf import llama_from_safetensors
from bayesprompt.models.predictor import LSTM, Predictor, Transformer, make_predictor, predict_all
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.models.trace import inspect
from bayesprompt.sources import (
    BetaCoins,
    Categorical,
    CategoricalMixture,
    Coin,
    CoinMixture,
    DirichletCategorical,
    Markov,
    Source,
)
from bayesprompt.tuning import FitConfig, Tuner, fit, hard_search, make_tuner
from bayesprompt.version import __version__ as __version__

if TYPE_CHECKING:
    import xarray as xr

    from bayesprompt.store import Store

__all__ = [
    "BetaCoins",
    "Categorical",
    "CategoricalMixture",
    "Coin",
    "CoinMixture",
    "DirichletCategorical",
    "FitConfig",
    "LSTM",
    "Markov",
    "NO_PREFIX",
    "Predictor",
    "Prefix",
    "Source",
    "Store",
    "Transformer",
    "Tuner",
    "UserError",
    "best_hard_prompt",
    "cumulative_regret",
    "exact_regret",
    "excess_log_loss",
    "fit",
    "hard_prefix",
    "hard_search",
    "inspect",
    "llama_from_safetensors",
    "make_predictor",
    "make_tuner",
    "predict_all",
    "run",
]


def run(
    experiment: str, architecture: str, method: str, scale: str = "quick", seed: int = 0, store: "Store | None" = None
) -> "xr.Dataset":
    """Return a cell of the book's experiments: from disk if it is there, else computed and stored.

    Raises UserError for a name that is not there; `bayesprompt list` shows which are.
    """
    from bayesprompt import catalog
    from bayesprompt.lab.run import run_cell
    from bayesprompt.store import Store

    return run_cell(catalog.cell(experiment, architecture, method, scale, seed), store or Store())


def __getattr__(name: str) -> Any:
    # Results on disk need xarray, which takes as long to import as half of the rest: only when it is asked for.
    if name == "Store":
        from bayesprompt.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
