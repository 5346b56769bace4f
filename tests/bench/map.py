"""Bench of the map of images: the size of its page, and how fast it answers.

  python tests/bench/map.py --images=10000

It needs selenium and Debian's chromium and chromium-driver. It prints the page's size,
the time until the map answers, and the time between frames while a pointer moves over
the map and while it is zoomed.
"""

import pathlib
import sys
import tempfile

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import browser  # noqa: E402
import pictures  # noqa: E402

from dinojax.pages import page, panels  # noqa: E402
from dinojax.pictures import sections  # noqa: E402

IMAGES = flags.DEFINE_integer("images", 10_000, "Dots of the map.")
CLASSES = 10
FRAMES = 200
# Calls a function before each frame; the milliseconds between them.
MEASURE = """
const done = arguments[arguments.length - 1];
const canvas = document.querySelector(".pictures-plane canvas");
const box = canvas.getBoundingClientRect();
const act = {
  hover: (i) => canvas.dispatchEvent(new PointerEvent("pointermove", {
    clientX: box.left + box.width * (0.5 + 0.4 * Math.cos(i / 20)),
    clientY: box.top + box.height * (0.5 + 0.4 * Math.sin(i / 13)),
  })),
  zoom: (i) => canvas.dispatchEvent(
    new KeyboardEvent("keydown", { key: i % 20 < 10 ? "+" : "-" })),
}[arguments[0]];
const times = [];
let last = performance.now();
const step = () => {
  const now = performance.now();
  times.push(now - last);
  last = now;
  if (times.length > arguments[1]) return done(times);
  act(times.length);
  requestAnimationFrame(step);
};
requestAnimationFrame(step);
"""


def make(count: int) -> dict:
  """A section of so many images in clusters by class."""
  rng = np.random.default_rng(0)
  labels = rng.integers(CLASSES, size=count)
  points = rng.normal(size=(CLASSES, 2))[labels] + rng.normal(size=(count, 2)) / 3
  side = sections.thumb_side(count)
  some = np.stack(pictures.make(200, side=side))
  thumbs = some[rng.integers(len(some), size=count)]
  names = [f"{i:05}.jpg" for i in range(count)]
  classes = tuple(f"class {i}" for i in range(CLASSES))
  return sections.map_section({"PCA": points}, thumbs, labels, names, classes)


def main(_):
  """Prints the figures."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "map.html")
    fragment = panels.fragment([make(IMAGES.value)])
    path.write_bytes(page.encode(page.render("map", [fragment])))
    print(f"{IMAGES.value:,} images: {path.stat().st_size / 1e6:.1f} MB", end="")
    with browser.opened(path) as driver:
      from selenium.webdriver.support import wait

      ready = "return document.querySelector('[data-ready]') && performance.now()"
      waiting = wait.WebDriverWait(driver, 60, poll_frequency=0.02)
      print(f", ready after {waiting.until(lambda x: x.execute_script(ready)):.0f} ms")
      for what in ("hover", "zoom"):
        times = driver.execute_async_script(MEASURE, what, FRAMES)
        median, high = np.percentile(times[1:], (50, 95))
        print(f"{what}: {median:.1f} ms between frames, 95th percentile {high:.1f}")


if __name__ == "__main__":
  app.run(main)
