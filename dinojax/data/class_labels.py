"""Labels as sources store them: the number of a class, or something else.

A label is the number of a class, NO_LABEL, or NOT_A_CLASS where something is stored
that numbers no class: text, or more than 63 bits.
"""

from typing import Any

NO_LABEL, NOT_A_CLASS = -1, -2
MAX_CLASSES = 1 << 20  # larger numbers identify something else, such as the image
MAX_LABEL = (1 << 63) - 1


class NoImageError(ValueError):
  """A record has no image that could be read, and yet a label."""

  def __init__(self, reason: str, label: int):
    """Takes why it has none, and the label."""
    super().__init__(reason, label)
    self.reason, self.label = reason, label

  def __str__(self) -> str:
    """Returns the reason."""
    return self.reason


def of_error(error: Exception) -> int:
  """Returns the label of a record that cannot be read, where the error knows it."""
  return getattr(error, "label", NO_LABEL)


def parse(value: Any) -> int:
  """Returns the label of what is stored: a number, its digits as text, or None."""
  if value is None:
    return NO_LABEL
  try:
    number = int(value)
  except (TypeError, ValueError, OverflowError):
    return NOT_A_CLASS
  return max(number, NO_LABEL) if number <= MAX_LABEL else NOT_A_CLASS


def numbered_classes(top: int) -> tuple[str, ...]:
  """Returns names of classes that have numbers alone, of which `top` is the largest."""
  return tuple(map(str, range(top + 1))) if top < MAX_CLASSES else ()
