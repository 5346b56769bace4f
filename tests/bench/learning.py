"""How well a run learns for the time it takes, beside the same method in plain PyTorch.

  python tests/bench/learning.py
  python tests/bench/learning.py --seconds=300 --every=30 --seed=1

Both sides train a network of one size on digits, from the config of digits.py.
Ours is the run as it is, with its own crops. The peer is torch_step.py with crops of
Pillow, as a user of DINOv2 has them: a resized crop, a flip, colours, blur, and none of
our geometry. Each has a process of its own, and they take turns of --every seconds of
CPU time, so that whatever else the machine does, it does to both. After each turn both
teachers are rated by one k-NN in float64. Reading, cropping, compiling and training
count; rating does not.
"""

import argparse
import multiprocessing
import pathlib
import resource
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from dinojax.data import mixture, sources
from experiments import digits

K, TEMPERATURE = 10, 0.07


def cpu_seconds() -> float:
  """CPU time of this process and of those that it has started and that have ended."""
  spent = (
    resource.getrusage(x) for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(x.ru_utime + x.ru_stime for x in spent)


def whole(source: str, *, resize: int, side: int) -> tuple[np.ndarray, np.ndarray]:
  """All images of a source, resized and cut, uint8 [n, side, side, 3], and labels."""
  from PIL import Image

  data = sources.open_source(source, field="config.knn")
  records = [data[i] for i in range(len(data))]
  images = [
    np.asarray(Image.fromarray(x["image"]).resize((resize, resize), Image.BICUBIC))
    for x in records
  ]
  first = (resize - side) // 2
  cut = np.stack(images)[:, first : first + side, first : first + side]
  return np.ascontiguousarray(cut), np.array([x["label"] for x in records])


def knn(train, labels, test, wanted) -> float:
  """Top-1 accuracy by the K nearest, weighed as in DINOv2, in float64."""
  train, test = (
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (train, test))
  )
  similarity = test @ train.T
  nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :K]
  weights = np.exp(np.take_along_axis(similarity, nearest, 1) / TEMPERATURE)
  votes = np.zeros((len(test), labels.max() + 1))
  np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
  return float((votes.argmax(1) == wanted).mean())


class Ours:
  """The run of a config: its input, its step, its image feature."""

  def __init__(self, config):
    import jax

    from dinojax import assembly, sharding
    from dinojax.data import feed
    from dinojax.runtime import allocator

    allocator.keep_pages()
    self.mesh = sharding.make_mesh(**config.mesh)
    self.run = assembly.assemble(config, self.mesh)
    init_key, self.key = jax.random.split(jax.random.key(config.seed))
    with jax.set_mesh(self.mesh):
      self.state = self.run.init(init_key)
      data = mixture.open_mixture(config.data.sources, config.data.weights)
      self.feed = feed.Feed(config, data, mesh=self.mesh, start_step=0)
      self.train_step = self.run.lower_step().compile()

  def step(self):
    import jax

    with jax.set_mesh(self.mesh):
      self.state, scalars = self.train_step(self.state, next(self.feed), self.key)
      jax.block_until_ready(scalars)

  def features(self, images):
    import jax

    with jax.set_mesh(self.mesh):
      return np.asarray(self.run.image_feature(self.state.teacher, images))


class PyTorch:
  """The same step and network in plain PyTorch, on crops by Pillow."""

  def __init__(self, config):
    import torch
    import torch_step
    import workload

    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    self.torch, self.workload, self.config = torch, workload, config
    self.rng = np.random.default_rng(config.seed)
    data = sources.open_source(config.data.sources[0], field="config.data.sources[0]")
    self.images = [data[i]["image"] for i in range(len(data))]
    self.order = []
    self.train_step = torch_step.TrainStep(config, device="cpu", compiled=False)

  def step(self):
    self.train_step(self.train_step.put(self.batch()))

  def batch(self):
    """A host batch as training has it."""
    b, groups = self.config.data.batch_size, self.config.group_size
    while len(self.order) < b:
      self.order = [*self.order, *self.rng.permutation(len(self.images))]
    rows, self.order = self.order[:b], self.order[b:]
    augment = self.config.augment
    masks = [
      self.workload.masking.block_masks(
        self.rng, **self.workload.mask_arguments(self.config)
      )
      for _ in range(b // groups)
    ]
    pairs = (augment.global1, augment.global2)
    return {
      "global_crops": self.crops(rows, pairs),
      "local_crops": self.crops(rows, [augment.local] * augment.num_local),
      "mask": np.concatenate([m["mask"] for m in masks]),
      "masked_indices": np.stack([m["masked_indices"] for m in masks]),
      "masked_weights": np.stack([m["masked_weights"] for m in masks]),
    }

  def crops(self, rows, kinds):
    return np.stack(
      [[crop(self.rng, self.images[i], kind) for kind in kinds] for i in rows]
    )

  def features(self, images):
    with self.torch.no_grad():
      backbone = self.train_step.teacher["backbone"]
      return backbone(self.torch.from_numpy(images), None, 1)[0].numpy()


def crop(rng, image, kind) -> np.ndarray:
  """A random crop by Pillow: place and size, flip, brightness, contrast, grey, blur."""
  from PIL import Image, ImageEnhance, ImageFilter

  picture = Image.fromarray(image)
  area = rng.uniform(*kind.area) * picture.width * picture.height
  aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
  width = min(np.sqrt(area * aspect), picture.width)
  height = min(np.sqrt(area / aspect), picture.height)
  left = rng.uniform(0, picture.width - width)
  top = rng.uniform(0, picture.height - height)
  box = (left, top, left + width, top + height)
  picture = picture.resize((kind.size, kind.size), Image.BICUBIC, box=box)
  if rng.random() < kind.flip_prob:
    picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
  if rng.random() < kind.jitter.prob:
    for amount, enhance in (
      (kind.jitter.brightness, ImageEnhance.Brightness),
      (kind.jitter.contrast, ImageEnhance.Contrast),
      (kind.jitter.saturation, ImageEnhance.Color),
    ):
      picture = enhance(picture).enhance(rng.uniform(1 - amount, 1 + amount))
  if rng.random() < kind.grey_prob:
    picture = picture.convert("L").convert("RGB")
  if rng.random() < kind.blur.prob:
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*kind.blur.sigma)))
  return np.asarray(picture)


def serve(pipe, kind, config, images):
  """Runs in a process: a turn for each number of seconds that `pipe` receives.

  Answers (CPU seconds so far, steps so far, features of each split).
  """
  side, steps, rating = kind(config), 0, 0.0
  while (until := pipe.recv()) is not None:
    while cpu_seconds() - rating < until and steps < config.total_steps:
      side.step()
      steps += 1
    spent = cpu_seconds()
    pipe.send((spent - rating, steps, [side.features(x) for x in images]))
    rating += cpu_seconds() - spent


def main():
  """Prints a row for each turn."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seconds", type=float, default=600, help="of CPU time, each")
  parser.add_argument("--every", type=float, default=30, help="seconds of a turn")
  parser.add_argument("--seed", type=int, default=0, help="of both")
  args = parser.parse_args()
  config = digits.get_config()
  with config.unlocked():
    config.seed = args.seed
  (train, labels), (test, wanted) = (
    whole(source, resize=config.knn.resize, side=config.knn.crop)
    for source in (config.knn.train, config.knn.test)
  )
  pixels = [x.reshape(len(x), -1) for x in (train, test)]
  print(f"raw pixels: k-NN {knn(pixels[0], labels, pixels[1], wanted):.1%}")
  spawn, sides = multiprocessing.get_context("spawn"), {}
  for kind in (Ours, PyTorch):
    pipe, theirs = spawn.Pipe()
    arguments = theirs, kind, config, (train, test)
    spawn.Process(target=serve, args=arguments).start()
    sides[kind.__name__] = pipe
  print(
    f"{'CPU seconds':>12}"
    + "".join(f"{name + ': steps':>16}{'k-NN':>8}" for name in sides)
  )
  until = 0.0
  while until < args.seconds:
    until += args.every
    row = f"{until:12.0f}"
    for pipe in sides.values():
      pipe.send(until)
      _, steps, (bank, queries) = pipe.recv()
      row += f"{steps:16,}{knn(bank, labels, queries, wanted):8.1%}"
    print(row, flush=True)
  for pipe in sides.values():
    pipe.send(None)


if __name__ == "__main__":
  main()
