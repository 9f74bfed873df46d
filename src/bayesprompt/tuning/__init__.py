"""The methods, and the loop that trains."""
