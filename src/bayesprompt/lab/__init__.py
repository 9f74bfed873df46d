"""The bench: experiments as objects, their cells, running and judging them."""
