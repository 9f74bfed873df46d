"""Tuning methods as reparametrisations, the one loop that learns them, and the search over hard prompts."""

from bayesprompt.tuning.fitting import AdamWConfig, DivergedError, Fit, FitConfig, fit
from bayesprompt.tuning.hard_search import HardSearch, hard_search
from bayesprompt.tuning.tuners import METHODS, PREFIX_METHODS, WEIGHT_METHODS, Tuner, make_tuner, prefix_from_rows

__all__ = ["AdamWConfig", "DivergedError", "Fit", "FitConfig", "HardSearch", "fit", "hard_search"]
__all__ += ["METHODS", "PREFIX_METHODS", "WEIGHT_METHODS", "Tuner", "make_tuner", "prefix_from_rows"]
