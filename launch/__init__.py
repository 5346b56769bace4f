"""Starts pre-training on one machine, under XManager, or on a GKE cluster."""
