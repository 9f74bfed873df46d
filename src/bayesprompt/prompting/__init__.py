"""The part of the book on prompting and tuning: its experiments, figures and claims."""
