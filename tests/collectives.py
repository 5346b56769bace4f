"""Collectives of compiled programs, and which of them could run in another order."""

import contextlib

import jax

from dinojax.planning import hlo, traffic


@contextlib.contextmanager
def compiled():
  """Yields a function that gives the HLO of all programs compiled in the context.

  Those that communicate, and of functions that are jitted in the context, or live on.
  """
  jit, kept = jax.jit, []

  def keeping_jit(*args, **kwargs):
    kept.append(jit(*args, **kwargs))
    return kept[-1]

  client = jax.devices()[0].client
  before = client.live_executables()

  def texts():
    new = [x for x in client.live_executables() if x not in before]
    texts = [module.to_string() for x in new for module in x.hlo_modules()]
    return [x for x in texts if any(f" {kind}(" in x for kind in traffic.KINDS)]

  jax.jit = keeping_jit
  try:
    yield texts
  finally:
    jax.jit = jit


def order(text):
  """Names of a program's collectives with their shapes, as XLA has scheduled them."""
  return [
    (run.op.name, run.op.arrays)
    for run in hlo.Program(text).runs()
    if run.op.kind in traffic.KINDS
  ]


def racing(text):
  """Pairs of ops that communicate, one in a loop, with neither needing the other.

  XLA:CPU runs collectives of one computation in order, but starts what follows a loop,
  a branch or a call beside it, unless that needs the result.
  """
  program, pairs = hlo.Program(text), []
  for ops in program.computations.values():
    needs, earlier = {}, []
    for op in ops.values():
      operands = [name for name in op.operands if name in needs]
      needs[op.name] = set(operands).union(*(needs[name] for name in operands))
      if not _communicates(program, op):
        continue
      pairs += [
        (other.name, op.name)
        for other in earlier
        if other.name not in needs[op.name]
        and {other.kind, op.kind} - set(traffic.KINDS)
      ]
      earlier.append(op)
  return pairs


def _communicates(program, op):
  return op.kind in traffic.KINDS or any(
    _communicates(program, inner)
    for name in op.called
    for inner in program.computations[name].values()
  )
