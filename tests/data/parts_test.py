"""Parts of a source keep records, names, classes and label maps."""

import numpy as np
import pytest

from dinojax.data import parts, sources


def test_a_part_has_the_records_at_its_places_and_a_fingerprint_of_its_own():
  digits = sources.open_source("embedded:digits:test", field="f")
  part, other = parts.Part(digits, [7, 3]), parts.Part(digits, [3, 7])
  assert len(part) == 2 and part.name(0) == digits.name(7)
  assert np.array_equal(part[1]["image"], digits[3]["image"])
  assert part.labels.tolist() == digits.labels[[7, 3]].tolist()
  assert (part.class_names, part.map_classes) == (
    *(digits.class_names, digits.map_classes),
  )
  assert isinstance(part, sources.DenseSource)
  assert len({x.fingerprint for x in (digits, part, other)}) == 3


def test_a_part_of_a_source_without_label_maps_has_none(tmp_path):
  (tmp_path / "a.png").touch()
  source = sources.open_source(f"folder:{tmp_path}", field="f")
  assert not isinstance(parts.Part(source, [0]), sources.DenseSource)


@pytest.mark.parametrize(("share", "held"), [(0.1, 45), (0.0, 1), (1.0, 449)])
def test_what_is_held_out_is_a_random_share_and_not_in_the_rest(share, held):
  digits = sources.open_source("embedded:digits:test", field="f")
  rest, out = parts.hold_out(digits, share, seed=0)
  names = [{x.name(i) for i in range(len(x))} for x in (rest, out)]
  assert len(names[1]) == held and len(names[0]) == 450 - held
  assert not names[0] & names[1]
  again, other = (parts.hold_out(digits, share, seed=s)[1] for s in (0, 1))
  assert again.fingerprint == out.fingerprint != other.fingerprint
