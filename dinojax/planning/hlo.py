"""Compiled XLA programs, read: what runs, how often, and what it costs on a device.

The input is the optimised HLO text of one device's program. XLA's own cost analysis
counts the body of a loop once; here it counts as often as the loop turns.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from dinojax.planning import hlo_ops, traffic

# What comes by the data center's network: to TPUs, and to GPUs.
BETWEEN_SLICES, BETWEEN_HOSTS = "between slices", "between hosts"
# Ops that move nothing themselves.
FREE = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("while", "call", "conditional", "async-start"),
)
SLICES = ("dynamic-slice", "slice", "gather")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([1-9]")  # a memory space other than the main one
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


class Array(NamedTuple):
  """One array of a shape. bytes: unpadded. on_chip: not in the device's main memory."""

  dims: tuple[int, ...]
  bytes: int
  on_chip: bool


class Op(NamedTuple):
  """One instruction. kind: the HLO opcode. attributes: the rest of its line."""

  name: str
  kind: str
  arrays: tuple[Array, ...]  # of the result
  operands: tuple[str, ...]
  attributes: str

  @property
  def source(self) -> str:
    """The name of the JAX operation it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else self.name

  @property
  def cycles(self) -> int | None:
    """The compiler's own estimate, where it leaves one (TPU v5e)."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    return int(found[1]) if found else None

  @property
  def called(self) -> tuple[str, ...]:
    """Names of the computations it calls, a loop's condition aside."""
    return tuple(
      name.strip().lstrip("%")
      for group in _CALLED.findall(self.attributes)
      for name in group.split(",")
      if name.strip()
    )


class Run(NamedTuple):
  """An op outside of fusions, with the number of times that a step runs it."""

  op: Op
  times: int
  computation: str


class Program:
  """The optimised HLO text of one device's program, parsed."""

  def __init__(self, text: str, *, gpus_per_host: int = 0):
    """Parses the text of `Compiled.as_text()`.

    gpus_per_host: what GPUs receive from other hosts is then counted apart.
    """
    self.gpus_per_host = gpus_per_host
    self.computations: dict[str, dict[str, Op]] = {}
    self.entry = ""
    current = None
    for line in text.splitlines():
      if current is None:
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
          current = self.computations[head[2]] = {}
          self.entry = head[2] if head[1] else self.entry
      elif line.startswith("}"):
        current = None
      elif _LINE.match(line):
        op = _parse(line)
        current[op.name] = op

  def runs(self, computation: str = "", times: int = 1) -> Iterator[Run]:
    """All ops that a step runs, loops and calls unfolded, fusions left whole."""
    computation = computation or self.entry
    for op in self.computations[computation].values():
      yield Run(op, times, computation)
      if op.kind in ("while", "call", "conditional", "async-start"):
        turns = self.turns(op) if op.kind == "while" else 1
        for name in op.called:
          yield from self.runs(name, times * turns)

  def flops(self, run: Run) -> float:
    """FLOPs of matrix products in one run of an op: two per multiply-add."""
    return sum(hlo_ops.flops(op, scope) for op, scope in self._parts(run))

  def bytes(self, run: Run) -> int:
    """Main-memory traffic of one run of an op: operands read and results written."""
    op = run.op
    if op.kind in FREE or op.kind.endswith("-done"):
      return 0
    if op.kind in ("copy-start", "slice-start"):  # returns both ends and a counter
      ends = [a for a in op.arrays if a.dims]
      return min(a.bytes for a in ends) * sum(not a.on_chip for a in ends[:2])
    scope = self.computations[run.computation]
    operands = [scope[name] for name in op.operands]
    if op.kind.endswith("-start") and len(op.arrays) > len(operands):
      return hlo_ops.main_bytes(op)  # returns operands and results
    if op.kind in SLICES:  # reads what it returns
      return 2 * hlo_ops.main_bytes(op)
    if op.kind == "dynamic-update-slice":
      return 2 * hlo_ops.main_bytes(operands[1])
    if op.kind == "fusion":
      return self._fusion_bytes(op, operands)
    return hlo_ops.main_bytes(op) + sum(
      hlo_ops.main_bytes(operand) for operand in operands
    )

  def collectives(self, run: Run) -> Iterator[tuple[str, int, str]]:
    """Each collective in one run of an op.

    Yields:
      (kind, bytes that reach this device, channel). One that the compiler spreads over
      several fusions stands in each of them, with the same channel.
    """
    for op, scope in self._parts(run):
      kind = op.kind.removesuffix("-start")
      if kind == "recv" and "_xla_megascale" in op.attributes:
        rendezvous = re.search(r'_rendezvous="([^"]*)"', op.attributes)[1]
        yield BETWEEN_SLICES, traffic.received_from_slices(op), rendezvous
      if "all-reduce-scatter" in "".join(run.op.called):  # how TPU programs name it
        kind = kind.replace("all-reduce", "reduce-scatter")
      if kind in traffic.KINDS:
        channel = re.search(r"channel_id=(\d+)", op.attributes)
        channel = f"{channel[1]} {op.arrays[0].dims}" if channel else op.name
        size, outside = traffic.received_bytes(op, kind, scope), 0
        if self.gpus_per_host:
          outside = traffic.share_between_hosts(op, kind, self.gpus_per_host)
        if outside:
          yield BETWEEN_HOSTS, int(size * outside), f"{kind} {channel}"
        yield kind, int(size * (1 - outside)), channel

  def _parts(self, run: Run) -> Iterator[tuple[Op, dict[str, Op]]]:
    """The op, or what a fusion holds, all the way down; each with its computation."""
    if run.op.kind != "fusion":
      yield run.op, self.computations[run.computation]
      return
    for name in run.op.called:
      for op in self.computations[name].values():
        yield from self._parts(Run(op, run.times, name))

  @functools.cache  # noqa: B019 - lives as long as the program
  def turns(self, loop: Op) -> int:
    """How often a loop's body runs."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)[1]
    ops = self.computations[condition]
    limits = [
      int(re.search(r"constant\((\d+)\)", "constant(" + op.attributes)[1])
      for op in ops.values()
      if op.kind == "constant" and not op.arrays[0].dims
    ]
    if not limits:
      raise ValueError(f"loop {loop.name}: no number of turns in the program's text")
    return max(limits)

  def _fusion_bytes(self, op, operands):
    inside = self.computations[op.called[0]]
    users: dict[str, list[Op]] = {}
    for part in inside.values():
      for name in part.operands:
        users.setdefault(name, []).append(part)
    total, aliased = 0, set()
    root = list(inside.values())[-1]
    for part in inside.values():
      if part.kind == "dynamic-update-slice" and part.arrays[0].dims in [
        a.dims for a in root.arrays
      ]:
        total += 2 * hlo_ops.main_bytes(inside[part.operands[1]], on_chip=True)
        aliased.add(part.arrays[0].dims)
    total += sum(a.bytes for a in op.arrays if not a.on_chip and a.dims not in aliased)
    parameters = [p for p in inside.values() if p.kind == "parameter"]
    parameters.sort(key=lambda p: int(re.match(r"(\d+)", p.attributes)[1]))
    for parameter, operand in zip(parameters, operands, strict=True):
      readers = _through_bitcasts(parameter.name, users)
      if readers and all(r.kind in SLICES for r in readers):
        if not operand.arrays[0].on_chip:
          total += sum(a.bytes for r in readers for a in r.arrays)
      elif operand.arrays[0].dims not in aliased:
        total += hlo_ops.main_bytes(operand)
    return total


def _through_bitcasts(name, users):
  readers = []
  for user in users.get(name, []):
    readers += _through_bitcasts(user.name, users) if user.kind == "bitcast" else [user]
  return readers


def _parse(line: str) -> Op:
  """One line of HLO text."""
  name = _LINE.match(line)[1]
  rest = line.split(" = ", 1)[1]
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  kind, rest = rest.split("(", 1)
  end = _closing("(" + rest, 0) - 1
  inside, attributes = rest[:end], rest[end + 1 :]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  if kind in ("parameter", "constant"):
    attributes = inside + ")" + attributes
  return Op(name, kind, _arrays(shape), operands, attributes)


def _closing(text: str, start: int) -> int:
  """Position of the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.start()
  raise ValueError(f"not HLO text: {text[:80]}")


def _arrays(shape: str) -> tuple[Array, ...]:
  arrays = []
  for kind, dims, layout in _ARRAY.findall(shape):
    dims = tuple(int(d) for d in dims.split(",") if d)
    bits = 8 if kind in ("pred", "token") else int(re.search(r"\d+", kind)[0])
    on_chip = bool(_ON_CHIP.search(layout))
    arrays.append(Array(dims, math.prod(dims) * bits // 8, on_chip))
  return tuple(arrays)
