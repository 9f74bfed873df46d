"""The version of the package, also in CITATION.cff."""

__version__ = "0.2.0"
