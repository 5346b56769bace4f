"""Sweeps: values to try for fields of a config, and the run of each combination."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Sequence

from dinojax import errors


@dataclasses.dataclass(frozen=True)
class Run:
  """One combination of values."""

  overrides: dict[str, str]  # {dotted path: value as typed}

  @property
  def folder(self) -> str:
    """Of the run within a sweep's workdir: the same for the same values; "" for none.

    Only characters that folders of buckets may have; a digest if some were replaced.
    """
    text = "_".join(f"{field}={value}" for field, value in self.overrides.items())
    name = re.sub("[^A-Za-z0-9._=+-]", "_", text)
    if name == text:
      return name
    return f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def runs(sweeps: Sequence[str]) -> list[Run]:
  """Every combination of "config.FIELD=VALUE,VALUE,..." texts, the last fastest."""
  values = {}
  for text in sweeps:
    match = re.fullmatch(r"config\.([\w.]+)=(.+)", text)
    if not match:
      raise errors.UserError(f"--sweep={text} must be config.FIELD=VALUE,VALUE,...")
    field, found = match[1], _split(match[2])
    if "" in found:
      raise errors.UserError(f"--sweep={text} has an empty value")
    if len(set(found)) < len(found):
      raise errors.UserError(f"--sweep={text} has a value twice")
    if field in values:
      raise errors.UserError(f"--sweep=config.{field} is given twice; join the values")
    if field == "workdir":
      raise errors.UserError("--sweep=config.workdir: each run has its own already")
    values[field] = found
  return [
    Run(dict(zip(values, combination, strict=True)))
    for combination in itertools.product(*values.values())
  ]


def _split(text: str) -> list[str]:
  """Splits at commas that are outside of brackets and quotes."""
  parts, depth, quote = [""], 0, ""
  for char in text:
    if char == "," and not depth and not quote:
      parts.append("")
      continue
    parts[-1] += char
    if quote:
      quote = "" if char == quote else quote
    elif char in "\"'":
      quote = char
    else:
      depth += (char in "([{") - (char in ")]}")
  return [part.strip() for part in parts]
