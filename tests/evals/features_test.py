"""Features keep the order of the source, its labels, and their place on the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from dinojax import errors
from dinojax.evals import features


class Pixels:
  """Record i is a square of brightness i, of class i % 3; some are not images."""

  where, fingerprint, labels = 'config.knn.train="pixels"', "0" * 16, None

  def __init__(self, count, broken=()):
    self.count, self.broken = count, broken

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.broken:
      return {"image": b"not an image", "label": index % 3}
    return {"image": np.full((6, 6, 3), index, np.uint8), "label": index % 3}

  def name(self, index):
    return f"pixels#{index}"


def extract(source, data, fsdp, apply_fn=None, batch_size=8):
  devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
  return features.extract(
    source,
    apply_fn or jax.jit(lambda params, x: x.mean((1, 2), dtype=jnp.float32) * params),
    jnp.float32(2),
    mesh=Mesh(devices, ("data", "fsdp")),
    batch_size=batch_size,
    resize=6,
    crop=4,
    workers=0,
    description="features",
  )


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (1, 8), (2, 4)])
def test_row_i_is_image_i_and_padding_has_no_label(data, fsdp):
  bank = extract(Pixels(21, broken={5}), data, fsdp)
  assert bank.features.shape == (3, 8, 3)
  assert bank.features.dtype == jnp.float32
  rows, labels = np.asarray(bank.features).reshape(24, 3), np.asarray(bank.labels)
  wanted = np.array([i % 3 if i < 21 and i != 5 else -1 for i in range(24)])
  np.testing.assert_array_equal(labels.reshape(24), wanted)
  there = np.flatnonzero(wanted >= 0)
  np.testing.assert_array_equal(rows[there], np.repeat(2.0 * there[:, None], 3, 1))


def test_no_device_holds_more_than_its_share():
  bank = extract(Pixels(32), 2, 4, batch_size=16)
  for array in (bank.features, bank.labels):
    shapes = {shard.data.shape for shard in array.addressable_shards}
    assert shapes == {(2, 2, *array.shape[2:])}


def test_the_network_is_traced_once_for_all_batches():
  traced = []

  def apply_fn(params, image):
    traced.append(image.shape)
    return image.reshape(len(image), -1).astype(jnp.float32) * params

  extract(Pixels(30), 1, 8, jax.jit(apply_fn))
  assert traced == [(8, 4, 4, 3)]


def test_features_of_half_precision_are_kept_in_float32():
  half = jax.jit(lambda params, x: x.mean((1, 2)).astype(jnp.bfloat16))
  assert extract(Pixels(8), 1, 8, half).features.dtype == jnp.float32


def test_sets_without_a_readable_image_and_features_that_are_not_finite_are_named():
  source = Pixels(21, broken={5})
  features.check(extract(source, 1, 8), source)
  nothing = Pixels(9, broken=range(9))
  with pytest.raises(errors.UserError, match="none of its 9 images is readable"):
    features.check(extract(nothing, 1, 8), nothing)
  overflow = jax.jit(lambda params, x: jnp.exp(x.mean((1, 2), dtype=jnp.float32) * 5))
  with pytest.raises(errors.UserError) as raised:  # above 88.7 / 5
    features.check(extract(source, 2, 4, overflow), source)
  assert str(raised.value).startswith(
    f"{source.where}: the features of 3 of 20 images are not finite, the first one's"
    " pixels#18; check the weights"
  )


def test_a_corrupt_image_is_not_counted_as_one_that_is_not_finite():
  source = Pixels(9, broken={8})
  overflow = jax.jit(lambda params, x: 1 / x.mean((1, 2), dtype=jnp.float32))
  bank = extract(source, 1, 8, overflow)  # black: image 0, and what stands for 8
  with pytest.raises(errors.UserError, match=r"1 of 8 images .* pixels#0;"):
    features.check(bank, source)
