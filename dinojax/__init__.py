"""dinojax: DINOv2 pre-training in JAX. This file holds the version and nothing else."""

__version__ = "0.1.0"
