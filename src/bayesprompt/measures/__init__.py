"""NumPy in, numbers out: regret, beliefs, the algebra of attention."""
