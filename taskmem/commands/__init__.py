"""Commands in groups of their own."""
