"""Weights in and out: our trees, released checkpoints, and files of each kind."""
