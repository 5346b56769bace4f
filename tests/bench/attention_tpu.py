"""Cycles of the TPU's attention kernel, as the compiler has scheduled it.

  pip install -e '.[plan]' && python tests/bench/attention_tpu.py

No TPU is needed: libtpu compiles for one v5e chip and writes its schedule, of which
each line, a bundle, takes a cycle unless it waits for memory. XLA's own attention, with
the changes of layout that it needs, is compiled in the same run and counted by the
compiler's estimate. Numbers are million cycles.
"""

import argparse
import functools
import glob
import os
import re
import tempfile

FLAGS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"


def bundles(folder: str, name: str) -> int:
  """Bundles of one program of a kernel, from the newest schedule in the dump."""
  pattern = f"{folder}/*attention_{name}*schedule-analysis_final_bundles.txt"
  newest = max(glob.glob(pattern), key=os.path.getmtime)
  with open(newest) as file:
    return int(re.search(r"total scheduled bundles:\s+(\d+)", file.read())[1])


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--heads", type=int, default=24, help="of 64 channels")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    os.environ["LIBTPU_INIT_ARGS"] = FLAGS.format(folder)  # before libtpu starts
    import jax

    from dinojax import sharding
    from dinojax.networks import attention, attention_tpu
    from dinojax.planning import hlo, topology

    devices = topology.devices("v5e:2x2")[:1]
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=devices)

    def compiled(kind, shape):
      def both(qkv, grad):
        attend = functools.partial(attention.attention, heads=args.heads, kind=kind)
        out, vjp = jax.vjp(attend, qkv)
        return out, vjp(grad)

      array = functools.partial(
        jax.ShapeDtypeStruct, dtype="bfloat16", sharding=sharding.replicated(mesh)
      )
      width = args.heads * attention_tpu.HEAD_WIDTH
      with jax.set_mesh(mesh):
        lowered = jax.jit(both).lower(
          array((*shape, 3 * width)), array((*shape, width))
        )
        return lowered.compile()

    header = ("crops x tokens", "kernel forward", "backward", "XLA, both", "ratio")
    print("".join(f"{cell:>16}" for cell in header))
    for crops, tokens in ((32, 257), (128, 50)):
      compiled("pallas", (crops, tokens))
      programs = crops // attention_tpu.block(crops, tokens) * args.heads / 2
      forward, backward = (
        bundles(folder, name) * programs / 1e6 for name in ("forward", "backward")
      )
      program = hlo.Program(compiled("xla", (crops, tokens)).as_text())
      xla = sum((run.op.cycles or 0) * run.times for run in program.runs()) / 1e6
      ratio = xla / (forward + backward)
      cells = (forward, backward, xla, ratio)
      print(f"{f'{crops} x {tokens}':>16}" + "".join(f"{x:16.2f}" for x in cells))


if __name__ == "__main__":
  main()
