"""Plans of a run: its step compiled for a machine that need not be there, and read."""
