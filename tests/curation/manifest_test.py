"""The output has one set of classes, whatever its inputs call theirs."""

from dinojax.curation import manifest


def test_classes_of_the_same_name_are_one_and_others_follow():
  names, numbers = manifest.classes(
    {1: {0, 1}, 2: {-1, 1, 2}}, {1: ("cat", "dog"), 2: ("ant", "cat", "dog")}
  )
  assert names == ["cat", "dog", "ant"]
  assert numbers == {1: [0, 1], 2: [2, 0, 1]}


def test_one_input_keeps_its_numbers_and_names_of_which_no_image_is_left():
  names, numbers = manifest.classes({3: {-1, 1}}, {3: ("cat", "dog", "eel")})
  assert (names, numbers) == (["cat", "dog", "eel"], {3: [0, 1, 2]})


def test_labels_without_a_name_are_numbers():
  names, numbers = manifest.classes({0: {0, 3}, 1: {1, 4}}, {})
  assert names == ["0", "1", "2", "3", "4"]
  assert all(known == [*range(len(known))] for known in numbers.values())
  names, numbers = manifest.classes({0: {0, 3}, 1: {1}}, {1: ("cat",)})
  assert names == ["0", "1", "2", "3", "cat"]
  assert numbers[1] == [4, 1]  # its label 1 lies beyond its names


def test_labels_too_large_for_classes_stay_as_they_are():
  assert manifest.classes({0: {0, 10**9}}, {}) == ([], {})
  assert manifest.classes({}, {}) == ([], {})


def test_names_become_lines_of_utf8():
  names, numbers = manifest.classes(
    {0: {0, 1, 2}}, {0: ("a\nb", "caf\udce9", " a  b ")}
  )
  assert names == ["a b", "caf\\xe9"]
  assert numbers == {0: [0, 1, 0]}


def test_notes_say_where_classes_come_from_and_warn_of_names_beside_numbers():
  given = {"exclude": ["folder:x"], "images": ["folder:a", "tar:b"]}
  found = {"labels": {1: {0, 1}, 2: {-1, 0, 2}}, "text_labels": 0}
  line, warning = manifest.class_notes(given, found, {1: ("cat", "dog")}, 5)
  assert line == "5 classes: 2 named by folder:a, 3 numbers of tar:b"
  assert warning.startswith(
    "warning: some inputs name their classes, others number them"
  )
  numbered = found | {"labels": {2: {-1, 0, 2}}}
  notes = manifest.class_notes(given, numbered, {1: ("cat", "dog")}, 3)
  assert notes == ["3 classes: 3 numbers of tar:b"]
  named = found | {"labels": {1: {0}}}
  notes = manifest.class_notes(given, named, {1: ("cat",)}, 1)
  assert notes == ["1 class: 1 named by folder:a"]


def counts(**of_reasons):
  return {"inputs": {0: {"images": 9}, 1: of_reasons}}


def test_a_reason_that_drops_most_of_what_it_applies_to_is_a_warning():
  found = counts(**{"kept": 1, "similar embedding": 255})
  (line,) = manifest.drop_warnings(found)
  assert line.startswith("warning: 255 of 256 images are dropped: similar embedding;")
  assert "check --checkpoint, or raise --near_cosine" in line
  found = counts(**{"kept": 10, "too small": 60, "near duplicate": 20, "animated": 9})
  lines = manifest.drop_warnings(found)
  assert ["60 of 99" in lines[0], "20 of 30" in lines[1], len(lines)] == [1, 1, 2]


def test_samples_and_few_drops_are_no_warning():
  found = counts(
    **{"kept": 10, "unreadable": 5, "near duplicate": 9, "not sampled": 99}
  )
  assert not manifest.drop_warnings(found)
