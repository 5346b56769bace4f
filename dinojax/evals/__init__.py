"""Evaluation of frozen teacher features."""
