"""Wording of numbers for people: counts, times, shares. Free of JAX."""

import datetime
import math

NOT_KNOWN = "not known"


def number(value: float | None, digits: int = 4) -> str:
  """A number with so many significant digits, thousands apart: 1,234,567 or 0.01235."""
  if value is None or not math.isfinite(value):
    return NOT_KNOWN
  if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
    return f"{int(value):,}"
  if abs(value) >= 10**digits:
    return f"{value:,.0f}"
  return f"{value:.{digits}g}"


def large(value: float | None) -> str:
  """A count in millions or billions where it is that large: 1.23 M."""
  if value is None or not math.isfinite(value):
    return NOT_KNOWN
  for size, letter in ((1e9, "B"), (1e6, "M")):
    if abs(value) >= size:
      return f"{value / size:,.2f} {letter}"
  return f"{value:,.0f}"


def share(value: float | None) -> str:
  """A share of 1 in per cent."""
  if value is None or not math.isfinite(value):
    return NOT_KNOWN
  return f"{100 * value:.1f}%"


def duration(seconds: float | None) -> str:
  """A time such as 3 d 4 h, 2 h 5 min, 90 s."""
  if seconds is None or not math.isfinite(seconds):
    return NOT_KNOWN
  minutes, hours = seconds / 60, seconds / 3600
  if hours >= 48:
    return f"{int(hours // 24)} d {int(hours % 24)} h"
  if hours >= 2:
    return f"{int(hours)} h {int(minutes % 60)} min"
  if minutes >= 2:
    return f"{minutes:.0f} min"
  return f"{seconds:.0f} s"


def moment(time: float | None) -> str:
  """A time since 1970 as a date in UTC."""
  if time is None or not 0 < time < 1e11:
    return NOT_KNOWN
  when = datetime.datetime.fromtimestamp(time, datetime.UTC)
  return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def listed(parts: list[str]) -> str:
  """Parts with commas and "and"."""
  return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
