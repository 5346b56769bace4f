"""Duplicates are found in any order, and only duplicates of kept images are dropped."""

import io
import itertools

import ingest_jobs
import numpy as np
import pytest
from PIL import Image

from dinojax.curation import candidates, embedding, fingerprints, near_duplicates


def brute_pairs(rows, bits):
  different = fingerprints.hamming_distance(rows["hash"][:, None], rows["hash"][None])
  a, b = np.nonzero(np.triu(different <= bits, 1))
  return set(map(tuple, np.stack([rows["id"][a], rows["id"][b]], 1).tolist()))


@pytest.mark.parametrize("bits", [0, 3, 6])
def test_tables_find_every_pair_of_hashes_within_the_distance(bits, tmp_path):
  rng = np.random.default_rng(0)
  rows = np.empty(600, candidates.NEAR)
  rows["id"] = np.arange(600)
  rows["hash"] = rng.integers(0, 2**64, 600, np.uint64)
  for i in range(300, 600):  # up to 8 flipped bits of one before
    flips = rng.choice(64, rng.integers(0, 9), replace=False)
    rows["hash"][i] = rows["hash"][i - 300] ^ np.uint64(sum(1 << int(b) for b in flips))
  job = ingest_jobs.make_job(tmp_path, near_bits=bits)
  found = set()
  for a in range(bits + 2):
    for b in range(a):
      mask = candidates.band_mask((b, a), job)
      shuffled = rng.permutation(rows)
      found |= set(map(tuple, candidates.pairs_within(shuffled, mask, bits).tolist()))
  assert found == brute_pairs(rows, bits)
  assert len(found) > 25


def test_a_hash_of_very_many_images_makes_few_pairs():
  rows = np.zeros(5_000, candidates.NEAR)
  rows["id"] = np.arange(5_000)
  pairs = candidates.pairs_within(rows, np.uint64(0xFFFF), 6)
  assert len(pairs) < 10 * len(rows)
  assert set(pairs["b"].tolist()) == set(range(1, 5_000))


def test_of_a_chain_only_duplicates_of_kept_images_are_dropped(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  value = {0: 0, 1: 1, 2: 2, 3: 3, 10: 10, 11: 11}
  size = {0: 1, 1: 3, 2: 1, 3: 1, 10: 1, 11: 1}
  dtype = [("width", np.uint32), ("height", np.uint32)]
  rows = np.zeros(12, dtype)
  rows["height"] = 1
  for i, x in size.items():
    rows["width"][i] = x
  job.save(job.path("scan", 0), rows)
  pairs = np.array([(0, 1), (1, 2), (2, 3), (10, 11)], candidates.PAIR)
  members, clusters = near_duplicates.connected_clusters(pairs)
  job.save(job.path("near", "members"), members)
  job.save(job.path("near", "clusters"), clusters)

  def is_duplicate(_, a, b):
    values = [np.array([value[int(i)] for i in ids]) for ids in (a, b)]
    return np.abs(values[0] - values[1]) <= 1

  ((start, stop),) = near_duplicates.cluster_spans(clusters)
  near_duplicates.choose_drops(
    (start, stop),
    **dict(job=job, step="near", reason="near duplicate"),
    **dict(is_duplicate=is_duplicate, excluded=frozenset()),
  )
  drops = np.load(job.path("near-chosen", 0))
  matches = dict(zip(drops["id"].tolist(), drops["match"].tolist(), strict=True))
  assert matches == {0: 1, 2: 1, 11: 10}, "1 is the largest; 3 is close to 2 alone"


def encoded(pixels, quality=80, size=None):
  image = Image.fromarray(pixels)
  if size:
    image = image.resize((size, size), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  image.save(file, "JPEG", quality=quality)
  return np.asarray(Image.open(file).convert("RGB"))


def test_fingerprints_recognise_an_image_that_was_reencoded_or_resized(
  pictures,
):
  for pixels, other in itertools.pairwise(pictures):
    mine = fingerprints.resize_to_square(pixels, 8)
    for copy in (encoded(pixels, 60), encoded(pixels, 85, 48), encoded(pixels, 85, 96)):
      assert fingerprints.same_image(mine, fingerprints.resize_to_square(copy, 8), 5.5)
      hashes = [fingerprints.perceptual_hash(x) for x in (pixels, copy)]
      assert fingerprints.hamming_distance(*hashes) <= 6
    assert not fingerprints.same_image(
      mine, fingerprints.resize_to_square(other, 8), 5.5
    )


def test_pale_pictures_are_duplicates_only_if_their_contrast_is_alike():
  sky = np.full((8, 8, 3), 200, np.uint8)
  pattern = sky.copy()
  pattern[::2] += 8
  assert np.abs(sky.astype(int) - pattern).mean() < 5.5
  assert not fingerprints.same_image(sky, pattern, 5.5)
  assert fingerprints.same_image(pattern, pattern, 0)
  board = np.where(np.indices((8, 8)).sum(0)[..., None] % 2, 0, 255).astype(np.uint8)
  board = np.repeat(board, 3, axis=-1)
  faint = np.where(board, board - 12, board)
  assert not fingerprints.same_image(board, faint, 5.5)
  assert fingerprints.same_image(board, faint, 6.5)


def test_samples_take_equally_many_images_of_every_cluster():
  clusters = np.repeat([0, 1, 2], [100, 10, 3])
  keys = np.random.default_rng(0).permutation(len(clusters)).astype(np.uint64)
  keep = embedding.sample_evenly(clusters, keys, 33)
  assert np.bincount(clusters[keep]).tolist() == [20, 10, 3]
  again = np.random.default_rng(1).permutation(len(clusters))
  same = embedding.sample_evenly(clusters[again], keys[again], 33)
  assert sorted(again[same]) == np.flatnonzero(keep).tolist()
  assert embedding.sample_evenly(clusters, keys, 1_000).all()
