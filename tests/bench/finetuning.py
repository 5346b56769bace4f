"""Ways of fine-tuning at equal time: frozen head, LoRA, all weights, from scratch.

  python tests/bench/finetuning.py --checkpoint=runs/cifar10_cpu --seconds=90 \
    --train=folder:data/cifar10/train --test=folder:data/cifar10/test \
    --batch_size=64 --workers=0 --workdir=runs/ways
  python tests/bench/finetuning.py --architecture=vitb14 --topology=h100:1x1 \
    --batch_size=64 --dtype=bfloat16

Takes the flags of `python -m dinojax.finetune`, but for --tune and --steps. The seconds
of a compiled step of each way are measured in turns, on noise: CPU seconds of the
process on a CPU, which other programs on it hardly lengthen. Then the real command
trains each way for as many steps as fit into --seconds and evaluates it --evals times.
The same command resumes where it was ended.

With --architecture, of experiments/, it compiles alone: memory and FLOPs of a step, and
on TPUs and GPUs that need not be there a bound of its time by their peak FLOPs and
bandwidth.
"""

import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from dinojax import backbone, finetune, sharding
from dinojax.commands import backbone_flags, finetune_flags
from dinojax.finetuning import assembly, opening, tasks, tuning
from dinojax.planning import chips, costs, hlo, memory, topology
from dinojax.runtime import compiled as compiled_programs
from dinojax.weights import model

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments is no installed package
SECONDS = flags.DEFINE_float("seconds", 90, "Seconds of steps that each way has.")
WAYS = flags.DEFINE_list("ways", list(tuning.WAYS), "Those to train, of --tune.")
EVALS = flags.DEFINE_integer("evals", 1, "Evaluations of each run.")
ARCHITECTURE = flags.DEFINE_string(
  "architecture", None, "Of experiments/: compiles alone."
)
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "With --architecture, as of dinojax.plan."
)
CLASSES = flags.DEFINE_integer("classes", 1_000, "With --architecture.")
OWN = SECONDS, WAYS, EVALS, ARCHITECTURE, TOPOLOGY, CLASSES
ROUNDS, STEPS = 4, 2  # of the measurement
MIB, GIB = 2**20, 2**30


def assembled(way: str, loaded: backbone.Backbone, classes: int, mesh: Mesh):
  """(assembly of a way by the flags, shapes of its batch)."""
  flags.FLAGS[finetune_flags.TUNE.name].value = way
  recipe = finetune.make_recipe(loaded, devices=mesh.size)
  remat = finetune_flags.REMAT.value
  made = assembly.assemble(recipe, loaded, mesh, classes=classes, remat=remat)
  size, side = recipe.batch_size, recipe.crop
  label = (size,), np.int32
  if recipe.task == "labels":
    label = (size, classes), np.uint8
  if recipe.task == "segmentation":
    label = (size, (side // loaded.module.patch_size) ** 2, classes), np.float32
  layout, where = loaded.layout, sharding.batch_sharding(mesh)
  shapes = {
    "image": ((size, side, side, layout.channels), layout.dtype),
    "label": label,
  }
  return made, {
    name: jax.ShapeDtypeStruct(*one, sharding=where) for name, one in shapes.items()
  }


def sizes(made: assembly.Assembly) -> dict[str, int]:
  """How many parameters are trained, and bytes of their moments."""
  moments = jax.tree.leaves(made.abstract_state.opt_state)
  return {
    "trained": sum(x.size for x in jax.tree.leaves(made.abstract_state.trained)),
    "optimizer_bytes": sum(x.size * x.dtype.itemsize for x in moments),
  }


def noise(shapes: dict) -> dict[str, jax.Array]:
  """A batch of random pixels; all have the first class."""
  rng = np.random.default_rng(0)
  image = shapes["image"]
  values = rng.integers(0, 256, image.shape).astype(image.dtype)
  label = np.zeros(shapes["label"].shape, shapes["label"].dtype)
  if label.ndim > 1:
    label[..., 0] = 1
  where = image.sharding
  return {"image": jax.device_put(values, where), "label": jax.device_put(label, where)}


def measure(mesh: Mesh) -> dict[str, dict]:
  """By way: `sizes`, bytes that a step needs at most, and seconds of a step."""
  compiled_programs.keep_programs("auto")  # or each is compiled twice
  loaded = backbone_flags.load(mesh)
  _, names = opening.open_sources(
    finetune_flags.TASK.value,
    finetune_flags.sources_given(),
    workers=backbone_flags.WORKERS.value,
    progress=lambda: None,
  )
  clock = time.process_time if sharding.platform() == "cpu" else time.perf_counter
  found, running, laps = {}, {}, {}
  for way in ("head", "lora", "all"):
    made, shapes = assembled(way, loaded, len(names), mesh)
    state, compiled = made.init(loaded.params), made.lower_step(shapes).compile()
    found[way] = sizes(made) | {"step_bytes": memory.peak(compiled)}
    batch = noise(shapes)
    state, _ = made.step(state, batch)  # compiles
    running[way], laps[way] = (made, jax.block_until_ready(state), batch), []
  for _ in range(ROUNDS):
    for way, (made, state, batch) in running.items():
      start = clock()
      for _ in range(STEPS):
        state, _ = made.step(state, batch)
      jax.block_until_ready(state)
      laps[way].append((clock() - start) / STEPS)
      running[way] = made, state, batch
  for way, one in found.items():
    one["step_seconds"] = statistics.median(laps[way])
  return found | {"scratch": found["all"]}  # the same program


def train(way: str, steps: int, out: pathlib.Path) -> dict[str, float]:
  """Runs the real command; most bytes and CPU seconds of its process."""
  own = tuple(f"--{flag.name}" for flag in (*OWN, finetune_flags.WORKDIR))
  given = [x for x in sys.argv[1:] if x.partition("=")[0] not in own]
  chosen = [f"--tune={way}", f"--steps={steps}", f"--workdir={out / way}"]
  chosen.append(f"--eval_every={-(-steps // EVALS.value)}")
  command = [sys.executable, "-m", "dinojax.finetune", *given, *chosen]
  process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
  _, status, used = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{' '.join(command)} ended with {status}")
  return {
    "process_bytes": used.ru_maxrss * 1024,
    "process_seconds": used.ru_utime + used.ru_stime,
  }


def accuracies(folder: pathlib.Path, metric: str) -> list[tuple[int, float]]:
  """(step, accuracy on --test) of each evaluation of a run."""
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return [(x["step"], x[f"test_{metric}"]) for x in lines if f"test_{metric}" in x]


def kept(path: pathlib.Path, make) -> dict:
  """The JSON of a file, which is made if it is not there."""
  if not path.exists():
    part = path.with_suffix(".part")
    part.write_text(json.dumps(make(), indent=1))
    part.rename(path)
  return json.loads(path.read_text())


def compare(out: pathlib.Path) -> None:
  """Measures and trains what is missing, and prints a row for each way."""
  out.mkdir(parents=True, exist_ok=True)
  task, size = tasks.TASKS[finetune_flags.TASK.value], backbone_flags.BATCH_SIZE.value

  def measured():
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    with jax.set_mesh(mesh):
      return measure(mesh)

  steps_of = kept(out / "steps.json", measured)
  print(
    "| --tune | trained | moments, MiB | step needs, MiB | step, s | process, MiB |"
    f" steps | images | {task.titles[0]} by step |\n|{'---|' * 9}",
    flush=True,
  )
  for way in WAYS.value:
    one = steps_of[way]
    steps = max(int(SECONDS.value / one["step_seconds"]), 2)
    path = out / f"{way}.json"
    ran = kept(path, lambda way=way, steps=steps: train(way, steps, out))
    rated = accuracies(out / way, task.metrics[0])
    cells = [
      f"{one['trained']:,}",
      f"{one['optimizer_bytes'] / MIB:.2f}",
      f"{one['step_bytes'] / MIB:,.0f}",
      f"{one['step_seconds']:.3f}",
      f"{ran['process_bytes'] / MIB:,.0f}",
      f"{steps:,}",
      f"{steps * size:,}",
      ", ".join(f"{step:,}: {value:.1%}" for step, value in rated),
    ]
    print(f"| {way} | {' | '.join(cells)} |", flush=True)


def compile_alone() -> None:
  """Prints memory, FLOPs and least time of a step of each way of a config's network."""
  named = TOPOLOGY.value
  devices = topology.devices(named) if named else jax.devices()[:1]
  mesh = sharding.make_mesh(data=1, fsdp=-1, devices=devices)
  chip = chips.CHIPS.get(devices[0].device_kind)
  fields = (
    importlib.import_module(f"experiments.{ARCHITECTURE.value}").get_config().backbone
  )
  fields = model.architecture(fields.to_dict(), ARCHITECTURE.value)
  module = model.module(fields, dtype=backbone_flags.DTYPE.value, attention="auto")
  shapes = model.shapes(fields)
  params = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    *(shapes, sharding.state_sharding(mesh, shapes)),
  )
  crop = model.usual_crop(patch_size=module.patch_size, pos_grid=module.pos_grid)
  usual = {"resize": model.usual_resize(crop), "crop": crop}
  print(
    "| --tune | trained | moments, GiB | step needs, GiB | TFLOPs | least time, ms |\n"
    f"|{'---|' * 6}"
  )
  for way in WAYS.value:
    loaded = backbone.Backbone(module, params, "", usual)
    with jax.set_mesh(mesh):
      made, batch = assembled(way, loaded, CLASSES.value, mesh)
      compiled = topology.compile_for(devices, made.lower_step(batch))
    one = sizes(made)
    program = hlo.Program(
      compiled.as_text(), gpus_per_host=sharding.gpus_per_host(devices)
    )
    cost = costs.cost(program, chip, len(devices))
    least = f"{1e3 * cost['seconds']:.0f}" if "seconds" in cost else ""
    cells = [
      f"{one['trained']:,}",
      f"{one['optimizer_bytes'] / GIB:.2f}",
      f"{memory.peak(compiled) / GIB:.1f}",
      f"{cost['hardware_flops'] / 1e12:.1f}",
      least,
    ]
    print(f"| {way} | {' | '.join(cells)} |", flush=True)


def main(_) -> None:
  """Compares the ways that --ways names."""
  if ARCHITECTURE.value:
    compile_alone()
    return
  finetune_flags.check()
  compare(pathlib.Path(finetune_flags.WORKDIR.value).absolute())


if __name__ == "__main__":
  app.run(main)
