"""The flag --out, of the commands that write what durable.py keeps whole."""

from absl import flags

OUT = flags.DEFINE_string("out", None, "What to write; see above.")
