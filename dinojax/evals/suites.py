"""Suites: data sets of an evaluation by the published protocols.

A suite sets the defaults of flags; a flag that is given counts. What is published
for its data sets: reporting/published.py.
"""

import dataclasses

TASKS = ("knn", "linear", "logreg")  # those that a suite can do
# k-NN: DINO (arXiv:2104.14294), section 4.1. linear: DINOv2 (arXiv:2304.07193), 7.1.
PROTOCOL = {
  "resize": 256,
  "crop": 224,
  "ks": ["10", "20", "100", "200"],
  "temperature": 0.07,
  "linear_steps": 12_500,
  "linear_batch": 1_024,
}


@dataclasses.dataclass(frozen=True)
class Suite:
  """Data sets, each with its sources by flag, and the defaults of other flags."""

  sets: dict[str, dict[str, str]]
  flags: dict


def _tfds(name, train, test):
  return {"train": f"tfds:{name}:{train}", "test": f"tfds:{name}:{test}"}


SUITES = {
  "imagenet1k": Suite(
    {"imagenet2012": _tfds("imagenet2012", "train", "validation")},
    {"tasks": ["knn", "linear"], **PROTOCOL},
  ),
  # Where validation images are published, they belong to train: logreg chooses C on a
  # tenth of it, k-NN chooses nothing.
  "small": Suite(
    {
      "cifar10": _tfds("cifar10", "train", "test"),
      "oxford_iiit_pet": _tfds("oxford_iiit_pet", "train", "test"),
      "dtd": _tfds("dtd", "train+validation", "test"),
      # It has one split, which tfds has shuffled.
      "eurosat": _tfds("eurosat/rgb", "train[:80%]", "train[80%:]"),
      "oxford_flowers102": _tfds("oxford_flowers102", "train+validation", "test"),
    },
    {"tasks": ["knn", "logreg"], **PROTOCOL},
  ),
}
