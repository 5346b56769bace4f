"""Checksums: the same on any mesh, on host or devices, and other ones of other bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import checksums, sharding


def tree():
  rng = np.random.default_rng(0)
  return {
    "a": {"kernel": rng.normal(size=(64, 24)).astype(np.float32)},
    "b": rng.normal(size=(16,)).astype(jnp.bfloat16),
    "step": np.int32(7),
  }


@pytest.mark.parametrize("piece", [100, 2**18])
@pytest.mark.parametrize("platform", ["host", "devices"])
def test_sums_are_those_of_all_bits_by_their_place_wherever_arrays_lie(
  monkeypatch, platform, piece
):
  monkeypatch.setattr(checksums, "PIECE", piece)
  if platform == "devices":
    monkeypatch.setattr(checksums, "is_on_host", lambda leaf: False)
  bits = {
    "a.kernel": tree()["a"]["kernel"].view(np.uint32),
    "b": tree()["b"].view(np.uint16),
    "step": np.array(7),
  }
  wanted = {
    name: sum(int(x) * (2 * i + 1) for i, x in enumerate(all_bits.flat)) % 2**32
    for name, all_bits in bits.items()
  }
  mesh = sharding.make_mesh(data=2, fsdp=4)
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  spread = jax.device_put(tree(), {"a": rows, "b": rows, "step": jax.devices()[0]})
  # What lies on several devices is in one program with what lies there, too.
  together = {name: x for name, x in spread.items() if name != "step"}
  assert checksums.of(jax.device_put(tree())) == wanted
  own = {name: x for name, x in tree().items() if name != "step"}  # of NumPy
  for arrays in (together, own):
    assert checksums.of(arrays) == {k: wanted[k] for k in ("a.kernel", "b")}


def test_a_changed_bit_or_two_values_in_each_others_place_are_another_sum():
  x = jnp.arange(1.0, 9.0)
  sums = [checksums.of([y]) for y in (x, x.at[3].set(4.0000005), x[::-1])]
  assert len({s["0"] for s in sums}) == 3
