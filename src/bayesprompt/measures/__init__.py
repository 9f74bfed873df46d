"""Measures of what networks do: NumPy in, numbers out."""
