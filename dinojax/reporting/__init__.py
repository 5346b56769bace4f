"""What a person sees of a run: lines, curves, rates."""
