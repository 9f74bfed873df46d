"""Networks as pure functions of their parameters, and the prefixes that they read."""
