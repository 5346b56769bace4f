"""Pictures for the tests of crops, and how two of them compare."""

import numpy as np


def photograph(height=400, width=500, seed=0):
  """Light, hard edges and 1/f noise, as in a busy photograph: uint8 [H, W, 3]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[0:height, 0:width]
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
  frequency[0, 0] = 1
  image = np.empty((height, width, 3))
  for c in range(3):
    white = np.fft.fft2(rng.standard_normal((height, width)))
    noise = np.fft.ifft2(white / frequency**0.8).real
    light = np.sin(x / 90 + c) + np.cos(y / 70 - c)
    image[..., c] = 120 + 40 * noise / noise.std() + 25 * light
  image[np.hypot(y - 150, x - 200) < 80] += 40
  image[(3 * x + y) % 170 < 9] -= 60
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def noise(side=48, seed=0):
  """Independent values: uint8 [side, side, 3]."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def psnr(a, b):
  """Peak signal to noise ratio in dB."""
  return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))
