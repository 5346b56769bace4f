"""Time of a program by roofline, in the order in which XLA runs its operations.

XLA:GPU starts a collective early, and waits for it late. What runs in between hides it.
"""

from dinojax.planning import chips, hlo, traffic


def roofline(flops: float, size: int, chip: chips.Chip) -> float:
  """Seconds of an operation at best: of its FLOPs, or of its bytes of memory."""
  return max(flops / chip.flops, size / chip.bandwidth)


def exposed(program: hlo.Program, chip: chips.Chip) -> float:
  """Seconds of a step that a GPU waits for the network.

  Each operation takes its time by roofline. Collectives take that of their bytes, one
  after the other, at the speed of NVLink or of the network between hosts, whichever
  takes longer.
  """
  return _walk(program, program.entry, chip)[1]


def _walk(program, computation, chip):
  """(seconds of operations, seconds of waiting) of one run of a computation."""
  working = waiting = free = 0.0  # free: when the network has done what was started
  ends = {}
  for op in program.computations[computation].values():
    run = hlo.Run(op, 1, computation)
    if op.kind in ("while", "call", "conditional"):
      for name in op.called:
        inner = _walk(program, name, chip)
        turns = program.turns(op) if op.kind == "while" else 1
        working, waiting = working + turns * inner[0], waiting + turns * inner[1]
    elif op.kind.removesuffix("-start") in traffic.KINDS:
      free = max(free, working + waiting) + _communication(program, run, chip)
      ends[op.name] = free
      if not op.kind.endswith("-start"):
        waiting = free - working
    elif op.kind.endswith("-done") and op.operands[0] in ends:
      waiting = max(waiting, ends[op.operands[0]] - working)
    elif not op.kind.endswith(("-start", "-done")):
      working += roofline(program.flops(run), program.bytes(run), chip)
  return working, waiting


def _communication(program, run, chip):
  within = between = 0
  for kind, size, _ in program.collectives(run):
    if kind == hlo.BETWEEN_HOSTS:
      between += size
    else:
      within += size
  return max(within / chip.network, between / chip.between)
