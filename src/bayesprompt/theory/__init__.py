"""What prompts can and cannot do to an exact Bayes predictor: Appendix E of Genewein et al. (2025), computed."""
