"""Prompting is conditioning a Bayesian predictor: the package behind the book."""

from bayesprompt.devices import use_every_core

__version__ = "0.2.0"

use_every_core()
