"""A run on paper: compiled for a machine that need not be there, and read."""
