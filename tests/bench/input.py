"""Benchmark of decoding and multi-crop, against Pillow and albumentations.

  pip install albumentations  # MIT; without it, its rows are left out
  python tests/bench/input.py --images=FOLDER_OF_JPEGS

Measures the time from the bytes of photographs to batches of the crops of
experiments/vitg14.py: 2 x 224 and 8 x 98 pixels, every augmentation. Pillow stands for
the PyTorch original: torchvision calls its resize, enhancers and HSV. Like the
original, it has no geometric augmentation, which ours has; "Pillow, geometry" adds one
bicubic warp to each crop, where torchvision needs two. Pillow blurs by running sums;
"Pillow, PyTorch's blur" convolves tensors, as the original does. albumentations decodes
with OpenCV and resizes with INTER_AREA, its only interpolation that does not alias; it
has no geometric augmentation here.

The first table is of one process, in CPU time, so that other work on the machine and
hidden threads do not count; the pipelines take turns, batch by batch. The second one is
of a process on each core, in wall time. The last lines compare our resampling, without
geometry, with Pillow's antialiased bicubic.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import sys
import time

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax.data import augment, geometry, images, photometric, resample
from dinojax.runtime import allocator
from experiments import vitg14

BATCH = 16
BOXES = 4  # of each photograph, whose resampling is compared
# What is timed apart: of which pipeline, its name, and the function.
STAGES = (
  ("dinojax", "decode", images.Probed, "decode"),
  ("dinojax", "draw warps", augment, "sample_warp"),
  ("dinojax", "draw colours", photometric, "sample_appearances"),
  ("dinojax", "warp", resample, "warp_crop"),
  ("dinojax", "blur and colour", photometric, "apply"),
  ("Pillow", "decode", sys.modules[__name__], "pillow_decode"),
  ("Pillow", "resize", sys.modules[__name__], "pillow_resize"),
  ("Pillow", "colour jitter", sys.modules[__name__], "pillow_jitter"),
  ("Pillow", "blur", sys.modules[__name__], "pillow_blur"),
  ("Pillow, geometry", "warp", sys.modules[__name__], "pillow_warp"),
  ("Pillow, PyTorch's blur", "blur", sys.modules[__name__], "torch_blur"),
  ("albumentations", "decode", sys.modules[__name__], "opencv_decode"),
)


def multi_crop():
  """The reference recipe's."""
  return augment.make_multi_crop(**vitg14.get_config().augment)


def stack(make_crop, kinds):
  """The crops of an image in the shape of `MultiCrop`'s."""
  crops = [make_crop(kind) for kind in (kinds.global1, kinds.global2)]
  local_crops = [make_crop(kinds.local) for _ in range(kinds.num_local)]
  return {"global_crops": np.stack(crops), "local_crops": np.stack(local_crops)}


def dinojax_pipeline():
  """(bytes, seed) -> crops."""
  kinds = multi_crop()
  return lambda data, seed: kinds(np.random.default_rng(seed), data)


def pillow_pipeline(*, warp=False, torch=False):
  """(bytes, seed) -> crops."""
  kinds = multi_crop()

  def run(data, seed):
    image, rng = pillow_decode(data), np.random.default_rng(seed)
    make_crop = functools.partial(pillow_crop, rng, image, warp=warp, torch=torch)
    return stack(make_crop, kinds)

  return run


def albumentations_pipeline():
  """(bytes, seed) -> crops."""
  import albumentations

  kinds = multi_crop()
  made = {
    id(kind): albumentations_crop(albumentations, kind)
    for kind in (kinds.global1, kinds.global2, kinds.local)
  }

  def run(data, seed):
    image = opencv_decode(data)
    for transform in made.values():
      transform.set_random_seed(seed)
    return stack(lambda kind: made[id(kind)](image=image)["image"], kinds)

  return run


def albumentations_crop(albumentations, crop):
  """One kind of crop."""
  jitter, blur = crop.jitter, crop.blur
  return albumentations.Compose(
    [
      albumentations.RandomResizedCrop(
        (crop.size, crop.size),
        scale=crop.area,
        ratio=crop.aspect,
        interpolation=cv2.INTER_AREA,
      ),
      albumentations.HorizontalFlip(p=crop.flip_prob),
      albumentations.ColorJitter(
        brightness=(1 - jitter.brightness, 1 + jitter.brightness),
        contrast=(1 - jitter.contrast, 1 + jitter.contrast),
        saturation=(1 - jitter.saturation, 1 + jitter.saturation),
        hue=(-jitter.hue, jitter.hue),
        p=jitter.prob,
      ),
      albumentations.ToGray(p=crop.grey_prob),
      albumentations.GaussianBlur(
        blur_limit=(blur.kernel, blur.kernel), sigma_limit=blur.sigma, p=blur.prob
      ),
      albumentations.Solarize(threshold_range=(0.5, 0.5), p=crop.solarize_prob),
    ]
  )


def opencv_decode(data):
  """JPEG bytes to RGB pixels."""
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def pillow_decode(data):
  """JPEG bytes to an RGB image."""
  return Image.open(io.BytesIO(data)).convert("RGB")


def pillow_resize(image, box, size):
  """Cuts a box and resizes it with antialiased bicubic, as torchvision does."""
  return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def pillow_hue(image, turn):
  """Turns the hue in 8-bit HSV."""
  hue, saturation, value = image.convert("HSV").split()
  turned = hue.point([(level + int(turn * 255)) % 256 for level in range(256)])
  return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def pillow_jitter(rng, image, jitter):
  """Brightness, contrast, saturation and hue in a random order."""
  steps = [
    (ImageEnhance.Brightness, jitter.brightness),
    (ImageEnhance.Contrast, jitter.contrast),
    (ImageEnhance.Color, jitter.saturation),
    (None, jitter.hue),
  ]
  for i in rng.permutation(4):
    enhancer, strength = steps[i]
    amount = rng.uniform(-strength, strength)
    if enhancer is None:
      image = pillow_hue(image, amount)
    else:
      image = enhancer(image).enhance(1 + amount)
  return image


def pillow_blur(image, sigma):
  """Pillow's Gaussian: running sums."""
  return image.filter(ImageFilter.GaussianBlur(sigma))


def torch_blur(image, sigma, kernel):
  """A Gaussian of kernel x kernel taps, as torchvision has it: by a convolution."""
  import torch

  torch.set_num_threads(1)  # as PyTorch's data loader does in its workers
  steps = torch.arange(kernel) - kernel // 2
  taps = torch.exp(-0.5 * (steps / sigma) ** 2)
  taps = taps / taps.sum()
  weight = torch.outer(taps, taps).expand(3, 1, kernel, kernel)
  pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
  padded = torch.nn.functional.pad(pixels, [kernel // 2] * 4, mode="reflect")
  blurred = torch.nn.functional.conv2d(padded, weight, groups=3)
  return Image.fromarray(blurred[0].round().byte().permute(1, 2, 0).numpy())


def pillow_warp(rng, image, ranges):
  """Turns, leans and tilts a crop about its centre, in one bicubic warp."""
  size = image.width
  angle, lean = np.radians([rng.uniform(-r, r) for r in (ranges.rotate, ranges.shear)])
  near = [rng.uniform(-r, r) * 2 / size for r in [ranges.perspective] * 2]
  turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  warp = np.eye(3)
  warp[:2, :2] = np.array(turn) @ [[1, np.tan(lean)], [0, 1]]
  warp[2, :2] = near
  centre, back = np.eye(3), np.eye(3)
  centre[:2, 2], back[:2, 2] = size / 2, -size / 2
  warp = centre @ warp @ back
  data = (warp / warp[2, 2]).ravel()[:8]
  kind, resample = Image.Transform.PERSPECTIVE, Image.Resampling.BICUBIC
  return image.transform(image.size, kind, data, resample)


def pillow_crop(rng, image, crop, *, warp, torch):
  """One augmented crop, [size,size,3] uint8."""
  limits = dict(area=crop.area, aspect=crop.aspect)
  height, width = geometry.sample_box(rng, image.height, image.width, **limits)
  left = int(rng.integers(image.width - width + 1))
  top = int(rng.integers(image.height - height + 1))
  image = pillow_resize(image, (left, top, left + width, top + height), crop.size)
  if warp:
    image = pillow_warp(rng, image, crop.geometry)
  if rng.random() < crop.flip_prob:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  if rng.random() < crop.jitter.prob:
    image = pillow_jitter(rng, image, crop.jitter)
  if rng.random() < crop.grey_prob:
    image = image.convert("L").convert("RGB")
  if rng.random() < crop.blur.prob:
    sigma = rng.uniform(*crop.blur.sigma)
    if torch:
      image = torch_blur(image, sigma, crop.blur.kernel)
    else:
      image = pillow_blur(image, sigma)
  if rng.random() < crop.solarize_prob:
    image = ImageOps.solarize(image, threshold=128)
  return np.asarray(image)


PIPELINES = {
  "dinojax": dinojax_pipeline,
  "Pillow": pillow_pipeline,
  "Pillow, geometry": functools.partial(pillow_pipeline, warp=True),
  "Pillow, PyTorch's blur": functools.partial(pillow_pipeline, torch=True),
  "albumentations": albumentations_pipeline,
}


def make_batches(run, photographs, first_seed):
  """Yields after each batch."""
  for start in range(0, len(photographs), BATCH):
    part = photographs[start : start + BATCH]
    crops = [run(data, first_seed + start + i) for i, data in enumerate(part)]
    for name in crops[0]:
      np.stack([one[name] for one in crops])
    yield


def clock(owner, name, seconds, row):
  """Replaces a function by one that adds its CPU time to seconds[row]."""
  function = getattr(owner, name)

  def clocked(*args, **kwargs):
    start = time.process_time()
    result = function(*args, **kwargs)
    seconds[row] += time.process_time() - start
    return result

  setattr(owner, name, clocked)


def time_one_process(names, photographs, repeats):
  """Medians in ms per image: {pipeline: total}, and of each of STAGES."""
  cv2.setNumThreads(0)
  totals, parts = [], []
  runs = {name: PIPELINES[name]() for name in names}

  def once(repeat):
    spent = dict.fromkeys(names, 0.0)
    makers = [(n, make_batches(runs[n], photographs, repeat)) for n in names]
    for _ in range(0, len(photographs), BATCH):
      for name, maker in makers:
        start = time.process_time()
        next(maker)
        spent[name] += time.process_time() - start
    return spent

  once(0)  # a warm-up
  for repeat in range(repeats):
    totals.append(list(once(repeat).values()))
  seconds = [0.0] * len(STAGES)
  for row, (_, _, owner, function) in enumerate(STAGES):
    clock(owner, function, seconds, row)
  for repeat in range(repeats):
    found = [0.0] * len(STAGES)
    for name in names:  # apart, since two share functions
      seconds[:] = [0.0] * len(STAGES)
      for _ in make_batches(runs[name], photographs, repeat):
        pass
      found = [
        part if row[0] == name else before
        for row, part, before in zip(STAGES, seconds, found, strict=True)
      ]
    parts.append(found)
  unit = 1e3 / len(photographs)
  return np.median(totals, axis=0) * unit, np.median(parts, axis=0) * unit


def work(name, photographs, seed, ready):
  """All photographs by one pipeline, once every process is ready."""
  cv2.setNumThreads(0)
  allocator.keep_pages()
  run = PIPELINES[name]()
  run(photographs[0], 0)
  ready.wait()
  start = time.perf_counter()
  for _ in make_batches(run, photographs, seed):
    pass
  return start, time.perf_counter()


def rate_all_cores(name, photographs, cores):
  """Images a second of a process on each core."""
  context = multiprocessing.get_context("spawn")
  with (
    context.Manager() as manager,
    concurrent.futures.ProcessPoolExecutor(cores, context) as pool,
  ):
    ready = manager.Barrier(cores)
    jobs = [pool.submit(work, name, photographs, i, ready) for i in range(cores)]
    starts, ends = zip(*(job.result() for job in jobs), strict=True)
  return cores * len(photographs) / (max(ends) - min(starts))


def decibels(crop, photographs):
  """PSNR of our resampling without geometry against Pillow's, boxes of the recipe."""
  rng, found = np.random.default_rng(0), []
  still = geometry.Geometry(rotate=0.0, shear=0.0, perspective=0.0, dihedral=False)
  plain = dataclasses.replace(crop, geometry=still, flip_prob=0.0)
  for data in photographs:
    probed, image = images.probe(data), pillow_decode(data)
    for _ in range(BOXES):
      warp = augment.sample_warp(rng, probed.height, probed.width, plain)
      halvings = augment.halvings([geometry.scale(warp, crop.size)])
      level = resample.finest(*probed.decode(halvings, alpha=True))
      ours, variance = resample.warp_crop(level, warp, crop.size, sigma=0.0)
      ours = photometric.smooth(ours, variance=variance, kernel=9)
      corners = warp @ np.array([[0, crop.size], [0, crop.size], [1, 1]])
      box = np.rint(corners[:2].T).astype(int).ravel().tolist()
      theirs = np.asarray(pillow_resize(image, box, crop.size))
      error = np.mean((ours.astype(np.float64) - theirs) ** 2)
      found.append(10 * np.log10(255**2 / max(error, 1e-3)))  # equal images: 78 dB
  return found


def read_photographs(folder, count):
  """Bytes of the first `count` JPEG files under `folder`."""
  if not pathlib.Path(folder).is_dir():
    sys.exit(f"--images={folder} is not a folder; name one that holds JPEG files")
  files = sorted(pathlib.Path(folder).rglob("*"))
  files = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
  if not files:
    sys.exit(f"--images={folder} holds no .jpg or .jpeg file; name a folder that does")
  return [file.read_bytes() for file in files[:count]]


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", required=True, help="folder of JPEG photographs")
  parser.add_argument("--count", type=int, default=256, help="photographs to use")
  parser.add_argument("--repeats", type=int, default=3, help="the median counts")
  args = parser.parse_args()
  allocator.keep_pages()  # as the input's workers do
  if args.count < 1 or args.repeats < 1:
    sys.exit("--count and --repeats must be at least 1")
  photographs = read_photographs(args.images, args.count)
  names = list(PIPELINES)
  try:
    import albumentations
  except ModuleNotFoundError:
    names.remove("albumentations")
  else:
    print(f"albumentations {albumentations.__version__}")
  sizes = np.array([pillow_decode(data).size for data in photographs])
  width, height = sizes.mean(axis=0)
  print(f"{len(photographs)} photographs, on average {width:.0f} x {height:.0f} px")
  totals, parts = time_one_process(names, photographs, args.repeats)
  print("one process, CPU time   ms/image  images/s    vs. ours")
  for name, total in zip(names, totals, strict=True):
    print(f"{name:22}{total:10.2f}{1e3 / total:10.0f}{total / totals[0]:12.2f}")
    for (pipeline, stage, _, _), part in zip(STAGES, parts, strict=True):
      if pipeline == name:
        print(f"  {stage:20}{part:10.2f}{part / total:10.0%}")
  cores = len(os.sched_getaffinity(0))
  print(f"{cores} processes, wall time      images/s   per core")
  for name in names:
    rates = [rate_all_cores(name, photographs, cores) for _ in range(args.repeats)]
    rate = np.median(rates)
    print(f"{name:22}{rate:14.0f}{rate / cores:11.0f}")
  kinds = multi_crop()
  for crop in (kinds.global1, kinds.local):
    found = decibels(crop, photographs)
    print(
      f"resampling {len(found)} boxes to {crop.size} against Pillow: "
      f"mean {np.mean(found):.1f} dB, worst {min(found):.1f} dB"
    )


if __name__ == "__main__":
  main()
