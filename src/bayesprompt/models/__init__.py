"""Networks as sequential predictors, and what they read before the data."""
