"""The experiments of Genewein et al. (2025)."""
