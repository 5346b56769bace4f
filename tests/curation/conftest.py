"""Pictures that differ from each other as photographs do: smooth shapes in colours."""

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def pictures():
  rng = np.random.default_rng(0)
  made = []
  for _ in range(24):
    coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC)
    made.append(np.clip(smooth, 0, 255).astype(np.uint8))
  return made
