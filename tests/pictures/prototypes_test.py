"""Prototypes take what is nearest to them, counted over all rows."""

import jax
import numpy as np
import pytest

from dinojax import sharding
from dinojax.networks import heads
from dinojax.pictures import prototypes
from dinojax.weights import model


@pytest.fixture(scope="module")
def head():
  shapes = model.head_shapes(hidden=8, bottleneck=4, prototypes=20, width=6)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), dict(shapes)
  )
  return prototypes.open_heads({"dino_head": params}, dtype="float32")


def rows(count):
  return np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_each_prototype_takes_the_rows_of_its_largest_logits(head, count):
  dino = head["dino"]
  assert dino.module == heads.DINOHead(8, 4, 20, "float32")
  assert head["ibot"] == dino
  logits = np.asarray(jax.jit(dino.module.apply)({"params": dino.params}, rows(count)))
  found = prototypes.most_taken(dino, rows(count), shown=5, count=4, devices=1)
  totals = np.bincount(logits.argmax(-1), minlength=20)
  assert (found.used, found.total) == ((totals > 0).sum(), 20)
  assert found.counts.tolist() == [x for x in sorted(totals, reverse=True)[:5] if x]
  np.testing.assert_array_equal(totals[found.prototypes], found.counts)
  for prototype, best in zip(found.prototypes, found.rows, strict=True):
    column = logits[:, prototype]
    np.testing.assert_allclose(column[best], np.sort(column)[::-1][:4], rtol=1e-5)


def test_eight_devices_find_what_one_does(head):
  alone = prototypes.most_taken(head["dino"], rows(300), shown=5, count=4, devices=1)
  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=4)):
    together = prototypes.most_taken(
      head["dino"], rows(300), shown=5, count=4, devices=8
    )
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_backbone_alone_has_none():
  assert prototypes.open_heads({"backbone": {}}, dtype="float32") == {}
