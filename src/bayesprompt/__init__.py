"""Prompting is conditioning a Bayesian predictor: the package behind the book."""

__version__ = "0.1.0"
