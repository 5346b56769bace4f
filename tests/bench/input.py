"""Images per second and core of the reference multi-crop, beside plain Pillow.

  python tests/bench/input.py --images=FOLDER_OF_JPEGS

Both decode a JPEG and make the crops of experiments/vitg14.py (2 x 224, 8 x 98, all
augmentations) from boxes of the same distribution, in one process, taking turns image
by image. Times are CPU time, so other work on the machine and hidden threads don't
flatter either. Pillow stands for the PyTorch pipeline: its resize, enhancers and HSV
are what torchvision calls. Blur is Pillow's own, where PyTorch convolves tensors.
"""

import argparse
import io
import pathlib
import sys
import time

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax.data import augment, images
from experiments import vitg14

# Rows of the table: what is timed, the function of ours, the function of Pillow's.
STAGES = (
  ("all", (globals(), "run_ours"), (globals(), "run_pillow")),
  ("decode", (vars(images), "decode"), (globals(), "pillow_decode")),
  ("resample", (vars(augment), "resample"), (globals(), "pillow_resample")),
  ("colour jitter", (vars(augment), "jitter_color"), (globals(), "pillow_jitter")),
  ("blur", (vars(augment), "gaussian_blur"), (globals(), "pillow_blur")),
)


def pillow_decode(data):
  """JPEG bytes to an RGB image."""
  return Image.open(io.BytesIO(data)).convert("RGB")


def pillow_resample(image, box, size):
  """Cuts a box and resizes it with antialiased bicubic, as torchvision does."""
  top, left, height, width = box
  cut = image.crop((left, top, left + width, top + height))
  return cut.resize((size, size), Image.Resampling.BICUBIC)


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
  """Pillow's Gaussian."""
  return image.filter(ImageFilter.GaussianBlur(sigma))


def pillow_crop(rng, image, crop):
  """One augmented crop, [size,size,3] uint8."""
  limits = dict(area=crop.area, aspect=crop.aspect)
  box = augment.sample_box(rng, image.height, image.width, **limits)
  image = pillow_resample(image, box, crop.size)
  if rng.random() < crop.flip_prob:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  if rng.random() < crop.jitter.prob:
    image = pillow_jitter(rng, image, crop.jitter)
  if rng.random() < crop.grey_prob:
    image = image.convert("L").convert("RGB")
  if rng.random() < crop.blur.prob:
    image = pillow_blur(image, rng.uniform(*crop.blur.sigma))
  if rng.random() < crop.solarize_prob:
    image = ImageOps.solarize(image, threshold=128)
  return np.asarray(image)


def run_pillow(multi_crop, data, rng):
  """All the crops of one photograph, by Pillow."""
  image = pillow_decode(data)
  views = [multi_crop.global1, multi_crop.global2]
  local_views = [multi_crop.local] * multi_crop.num_local
  return {
    "global_crops": np.stack([pillow_crop(rng, image, crop) for crop in views]),
    "local_crops": np.stack([pillow_crop(rng, image, crop) for crop in local_views]),
  }


def run_ours(multi_crop, data, rng):
  """All the crops of one photograph, by dinojax."""
  return multi_crop(rng, images.decode(data))


def clock(namespace, name, seconds):
  """Replaces a function by one that adds its CPU time to seconds[0]."""
  function = namespace[name]

  def clocked(*args, **kwargs):
    start = time.process_time()
    result = function(*args, **kwargs)
    seconds[0] += time.process_time() - start
    return result

  namespace[name] = clocked


def time_in_turns(multi_crop, photographs, repeats):
  """Milliseconds per image of each of STAGES, medians: [stages, 2] for ours, Pillow."""
  seconds = np.zeros((len(STAGES), 2, 1))
  for row, (_, *functions) in enumerate(STAGES):
    for side, (namespace, name) in enumerate(functions):
      clock(namespace, name, seconds[row, side])
  runs = []
  for repeat in range(repeats + 1):
    seconds[:] = 0
    for i, data in enumerate(photographs):
      runners = [run_ours, run_pillow]  # The clocked ones.
      for runner in runners[:: -1 if (repeat + i) % 2 else 1]:
        runner(multi_crop, data, np.random.default_rng(i))
    runs.append(seconds[..., 0] / len(photographs) * 1e3)
  return np.median(runs[1:], axis=0)  # The first is a warm-up.


def resample_psnr(crop, photographs):
  """PSNR in dB of our resampling against Pillow's, one random box per photograph."""
  rng, decibels = np.random.default_rng(0), []
  for data in photographs:
    image = pillow_decode(data)
    limits = dict(area=crop.area, aspect=crop.aspect)
    box = augment.sample_box(rng, image.height, image.width, **limits)
    ours = augment.resample(np.asarray(image), box, crop.size).astype(np.float64)
    theirs = np.asarray(pillow_resample(image, box, crop.size))
    error = max(np.mean((ours - theirs) ** 2), 1e-3)  # Equal images: 78 dB.
    decibels.append(10 * np.log10(255**2 / error))
  return decibels


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
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", required=True, help="folder of JPEG photographs")
  parser.add_argument("--count", type=int, default=64, help="photographs to use")
  parser.add_argument("--repeats", type=int, default=5, help="the median counts")
  args = parser.parse_args()
  if args.count < 1 or args.repeats < 1:
    sys.exit("--count and --repeats must be at least 1")
  photographs = read_photographs(args.images, args.count)
  multi_crop = augment.make_multi_crop(**vitg14.get_config().augment)
  sizes = np.array([pillow_decode(data).size for data in photographs])
  width, height = sizes.mean(axis=0)
  print(
    f"{len(photographs)} photographs, on average {width:.0f} x {height:.0f} px, "
    f"median of {args.repeats} repeats, CPU time"
  )
  times = time_in_turns(multi_crop, photographs, args.repeats)
  total, stages = times[0], times[1:]
  print(f"{'':20}{'dinojax':>17}{'Pillow':>17}{'ratio':>8}")
  print(f"{'images/s per core':20}{1e3 / total[0]:10.1f}{1e3 / total[1]:17.1f}")
  names = ["ms/image", *(f"  {row[0]}" for row in STAGES[1:]), "  all the rest"]
  rows = [total, *stages, total - stages.sum(axis=0)]
  for name, (ours, theirs) in zip(names, rows, strict=True):
    ours_share, theirs_share = ours / total[0], theirs / total[1]
    cells = f"{ours:10.2f} {ours_share:6.1%}{theirs:10.2f} {theirs_share:6.1%}"
    print(f"{name:20}{cells}{theirs / ours:8.2f}")
  for crop in (multi_crop.global1, multi_crop.local):
    decibels = resample_psnr(crop, photographs)
    print(
      f"resampling to {crop.size} against Pillow: mean {np.mean(decibels):.1f} dB, "
      f"worst {min(decibels):.1f} dB"
    )


if __name__ == "__main__":
  main()
