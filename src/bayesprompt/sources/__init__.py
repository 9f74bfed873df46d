"""Where sequences come from: what a source is, the package's seven, and tasks on digits."""

from bayesprompt.sources.base import Exchangeable, Sampler, Source
from bayesprompt.sources.coins import (
    BetaCoins,
    Categorical,
    CategoricalMixture,
    Coin,
    CoinMixture,
    DirichletCategorical,
    Markov,
)
from bayesprompt.sources.digits import Digits, one_task

__all__ = ["BetaCoins", "Categorical", "CategoricalMixture", "Coin", "CoinMixture", "DirichletCategorical", "Markov"]
__all__ += ["Digits", "Exchangeable", "Sampler", "Source", "one_task"]
