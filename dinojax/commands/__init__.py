"""What the command lines share; importing it loads no JAX."""
