"""Multi-crop: one photograph in, two global and several local augmented crops out.

Everything happens on uint8 RGB on the host, with OpenCV and NumPy, and every step ends
in uint8 again, rounded to nearest; normalisation is done on the device. A crop is made
in three parts that know nothing of each other: sample a box, resample it to a square,
change its colours. All randomness comes from the `rng` that is handed in, so the same
generator state gives the same crops.

Source: DINOv2 (arXiv:2304.07193) and the torchvision transforms it is built from.
DIFFERS: Pillow truncates in brightness, contrast and saturation, half a level too dark
on average; here they round.

Shapes: photograph [H,W,3], global crop [S,S,3], each of L local crops [s,s,3].
"""

import dataclasses
import math
import operator

import cv2
import numpy as np

from dinojax import errors

LEVELS = np.arange(256)
RGB = np.eye(3)
GREY = np.tile((0.299, 0.587, 0.114), (3, 1))  # luma of ITU-R BT.601, in each channel

# Standard deviation, in pixels of the crop, of the Gaussian that turns OpenCV's cubic
# kernel (a = -0.75, blind to aliasing) into Pillow's antialiased one (a = -0.5). PSNR
# over the recipe's boxes on 256 photographs: mean 45 dB and worst 36 dB at 224, mean
# 44 dB and worst 35 dB at 98. 0.35 and 0.39 cost up to 1 dB. INTER_AREA in its place is
# slower, and falls to 30 dB where a box is slightly larger than the crop.
PREFILTER_SIGMA = 0.37


@dataclasses.dataclass(frozen=True)
class Jitter:
  """Colour jitter: factors are drawn from 1 +- strength, the hue's turn from +-hue."""

  prob: float
  brightness: float
  contrast: float
  saturation: float
  hue: float  # in turns of the colour circle, at most 0.5


@dataclasses.dataclass(frozen=True)
class Blur:
  """Gaussian blur; its kernel covers as many pixels in a large crop as in a small."""

  prob: float
  sigma: tuple[float, float]  # range, in pixels of the crop
  kernel: int


@dataclasses.dataclass(frozen=True)
class Crop:
  """How one kind of crop is made; the fields stand in the order they are applied."""

  size: int
  area: tuple[float, float]  # range of the box's share of the photograph
  aspect: tuple[float, float]  # range of the box's width / height
  flip_prob: float
  jitter: Jitter
  grey_prob: float
  blur: Blur
  solarize_prob: float


# Fields of `Crop`, what must hold for their values, and the same in words.
LIMITS = (
  (["size"], lambda v: v >= 1, "be at least 1 pixel"),
  (["area"], lambda v: 0 < v[0] <= v[1] <= 1, "rise within (0, 1]"),
  (["aspect", "blur.sigma"], lambda v: 0 < v[0] <= v[1], "rise and be above 0"),
  (["flip_prob", "grey_prob", "solarize_prob"], lambda v: 0 <= v <= 1, "be in [0, 1]"),
  (["jitter.prob", "blur.prob"], lambda v: 0 <= v <= 1, "be in [0, 1]"),
  (["jitter.brightness", "jitter.contrast"], lambda v: v >= 0, "be 0 (off) or above"),
  (["jitter.saturation"], lambda v: v >= 0, "be 0 (off) or above"),
  (["jitter.hue"], lambda v: 0 <= v <= 0.5, "be in [0, 0.5]"),
  (["blur.kernel"], lambda v: v > 0 and v % 2 == 1, "be odd, as 9 is"),
)


@dataclasses.dataclass(frozen=True)
class MultiCrop:
  """All the crops of a training image; picklable, for the input worker processes."""

  global1: Crop
  global2: Crop
  local: Crop
  num_local: int

  def __call__(self, rng: np.random.Generator, image: np.ndarray) -> dict:
    """Makes the crops of one image.

    Args:
      rng: the only source of randomness.
      image: [H,W,3] uint8 RGB.

    Returns:
      {"global_crops": [2,S,S,3] uint8, "local_crops": [L,s,s,3] uint8}.
    """
    cv2.setNumThreads(0)  # The input worker processes already fill the cores.
    views = (self.global1, self.global2)
    local_views = [self.local] * self.num_local
    return {
      "global_crops": np.stack([make_crop(rng, image, crop) for crop in views]),
      "local_crops": np.stack([make_crop(rng, image, crop) for crop in local_views]),
    }


def make_multi_crop(*, global1, global2, local, num_local) -> MultiCrop:
  """Builds and checks the `MultiCrop` of `config.augment`.

  Args:
    global1: mapping with the fields of `Crop`; also `global2` and `local`.
    global2: as `global1`, and of the same size.
    local: as `global1`.
    num_local: L.

  Raises:
    errors.UserError: a value is outside its limits.
    TypeError: a field is unknown or missing.
  """
  crops = {}
  for name, group in (("global1", global1), ("global2", global2), ("local", local)):
    parts = {"jitter": Jitter(**group["jitter"]), "blur": Blur(**group["blur"])}
    crops[name] = Crop(**{**group, **parts})
    _check(f"config.augment.{name}", crops[name])
  if crops["global1"].size != crops["global2"].size:
    raise errors.UserError(
      f"config.augment.global2.size={crops['global2'].size} must equal "
      f"config.augment.global1.size={crops['global1'].size}"
    )
  if num_local < 1:
    raise errors.UserError(f"config.augment.num_local={num_local} must be at least 1")
  return MultiCrop(**crops, num_local=num_local)


def _check(path, crop):
  """Raises `UserError` for the first value of `crop` that is outside its limits."""
  for fields, holds, rule in LIMITS:
    for field in fields:
      value = operator.attrgetter(field)(crop)
      if not holds(value):
        raise errors.UserError(f"{path}.{field}={value} must {rule}")


def make_crop(rng: np.random.Generator, image: np.ndarray, crop: Crop) -> np.ndarray:
  """One augmented crop of `image` [H,W,3] uint8: [size,size,3] uint8."""
  height, width = image.shape[:2]
  box = sample_box(rng, height, width, area=crop.area, aspect=crop.aspect)
  pixels = resample(image, box, crop.size)
  if rng.random() < crop.flip_prob:
    pixels = cv2.flip(pixels, 1)
  return apply_photometric(rng, pixels, crop)


def sample_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
  """Draws the box of a random resized crop, as torchvision defines it.

  The share of the image is uniform in `area`, width / height log-uniform in `aspect`.
  When no try fits the image, the largest central box with an aspect in the range is
  taken.

  Returns:
    (top, left, height, width) in whole pixels, inside the image.
  """
  low, high = aspect
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      return int(top), int(left), h, w
  h, w = height, width
  if width / height < low:
    h = max(round(width / low), 1)
  elif width / height > high:
    w = max(round(height * high), 1)
  return (height - h) // 2, (width - w) // 2, h, w


def resample(
  image: np.ndarray, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
  """Resizes a box of `image` to [size,size,3], close to Pillow's antialiased BICUBIC.

  A Gaussian as wide as the shrinking asks for, then OpenCV's cubic: see
  PREFILTER_SIGMA. `box` is (top, left, height, width), inside the image.
  """
  top, left, height, width = box
  pixels = image[top : top + height, left : left + width]
  sigma_x, taps_x = _prefilter(width, size)
  sigma_y, taps_y = _prefilter(height, size)
  taps, edge = (taps_x, taps_y), cv2.BORDER_REPLICATE
  pixels = cv2.GaussianBlur(pixels, taps, sigma_x, sigmaY=sigma_y, borderType=edge)
  return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)


def _prefilter(side, size):
  """The Gaussian along an axis resized from `side` to `size`: (sigma, taps)."""
  sigma = PREFILTER_SIGMA * max(side / size, 1)
  # An axis that keeps its length is copied; elsewhere the kernel ends at two sigmas.
  return sigma, 1 if side == size else 2 * math.ceil(2 * sigma) + 1


def apply_photometric(
  rng: np.random.Generator, image: np.ndarray, crop: Crop
) -> np.ndarray:
  """Applies the photometric steps of `crop` to [S,S,3] uint8, each with its chance."""
  jitter, blur = crop.jitter, crop.blur
  if rng.random() < jitter.prob:
    image = jitter_color(rng, image, jitter)
  if rng.random() < crop.grey_prob:
    image = adjust_saturation(image, 0.0)
  if rng.random() < blur.prob:
    image = gaussian_blur(image, sigma=rng.uniform(*blur.sigma), kernel=blur.kernel)
  if rng.random() < crop.solarize_prob:
    image = solarize(image)
  return image


def jitter_color(
  rng: np.random.Generator, image: np.ndarray, jitter: Jitter
) -> np.ndarray:
  """Brightness, contrast, saturation and hue of [S,S,3] uint8, in a random order."""

  def factor(strength):
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)

  steps = [
    (adjust_brightness, factor(jitter.brightness)),
    (adjust_contrast, factor(jitter.contrast)),
    (adjust_saturation, factor(jitter.saturation)),
    (adjust_hue, rng.uniform(-jitter.hue, jitter.hue)),
  ]
  for i in rng.permutation(len(steps)):
    adjust, amount = steps[i]
    image = adjust(image, amount)
  return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales [S,S,3] uint8 by `factor`: 0 gives black."""
  return _lookup(image, LEVELS * factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales the distance from the image's mean luma, a whole level, by `factor`."""
  mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
  return _lookup(image, mean + (LEVELS - mean) * factor)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Scales the distance from each pixel's luma by `factor`: 0 gives a grey image."""
  return cv2.transform(image, factor * RGB + (1 - factor) * GREY)


def adjust_hue(image: np.ndarray, turn: float) -> np.ndarray:
  """Turns the hue of [S,S,3] uint8 by `turn`, a fraction of the colour circle.

  DIFFERS: OpenCV's 8-bit HSV has 256 hues and rounds where Pillow's truncates, so a
  pixel of a photograph is up to 7 levels from Pillow's, 0.4 on average, and closer to
  the exact turn than Pillow's own.
  """
  shift = round(turn * 256) % 256
  if shift == 0:
    return image  # To HSV and back is not free: it costs up to 3 levels.
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
  hsv[..., 0] += np.uint8(shift)  # uint8 wraps round the circle.
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def gaussian_blur(image: np.ndarray, *, sigma: float, kernel: int) -> np.ndarray:
  """Blurs [S,S,3] uint8 with `kernel` x `kernel` taps; borders are mirrored."""
  taps, edge = (kernel, kernel), cv2.BORDER_REFLECT_101
  return cv2.GaussianBlur(image, taps, sigma, borderType=edge)


def solarize(image: np.ndarray) -> np.ndarray:
  """Inverts the values of [S,S,3] uint8 that are 128 or above."""
  return _lookup(image, np.where(LEVELS < 128, LEVELS, 255 - LEVELS))


def _lookup(image, values):
  """Replaces level i of `image` by values[i], rounded to nearest and clipped."""
  return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
