"""The table shows every result, whatever its name."""

from dinojax.evals import table


def test_rows_of_one_kind_stand_together_under_their_columns():
  text = table.render(
    {
      "knn_top1_k10": 0.789,
      "knn_top5_k10": 0.98,
      "knn_top1_k2_shots5": 0.5,
      "knn_top1_k2_shots5_std": 0.0123,
      "logreg_top1": 0.9,
      "logreg_top5": 1.0,
      "logreg_c": 100.0,
      "retrieval_map": 0.25,
      "retrieval_recall_at_5": 0.75,
      "retrieval_left_out": 3,
    }
  )
  assert text.splitlines() == [
    "                                           top-1         top-5",
    "k-NN, k=10                                 78.9%         98.0%",
    "logistic regression, C=1e+02               90.0%        100.0%",
    "                                           top-1",
    "k-NN, k=2, 5 images per class         50.0% ±1.2",
    "                                             mAP      recall@5",
    "retrieval                                  25.0%         75.0%",
    "                                        left out",
    "retrieval, queries without a match             3",
  ]


def test_classes_of_a_segmentation_stand_below_their_mean():
  text = table.render(
    {
      "knn_segmentation_miou": 0.5,
      "knn_segmentation_accuracy": 0.912,
      "knn_segmentation_patches": 1234,
      "knn_segmentation_iou": {"background": 0.75, "cat": None},
    }
  )
  assert text.splitlines() == [
    "                                          mIoU        pixels",
    "k-NN segmentation, 1,234 patches         50.0%         91.2%",
    "                                           IoU",
    "  background                             75.0%",
    "  cat                                     none",
  ]


def test_the_head_of_a_linear_segmentation_stands_in_its_row():
  text = table.render(
    {
      "linear_segmentation_miou": 0.5,
      "linear_segmentation_accuracy": 0.912,
      "linear_segmentation_iou": {"cat": 0.5},
      "linear_segmentation_head": "lr0.001",
      "linear_segmentation_chosen_on": "val",
      "linear_segmentation_grid": {"lr0.001": 0.5},
    }
  )
  assert text.splitlines()[1].split() == [
    *("linear", "segmentation,", "lr0.001,", "chosen", "on", "val", "50.0%", "91.2%")
  ]
  assert "cat" in text and "grid" not in text


def test_attentive_probes_depth_and_regression_of_patches_have_rows_of_their_own():
  text = table.render(
    {
      "attentive_top1": 0.5,
      "attentive_top5": 0.75,
      "attentive_head": "lr0.001_wd0.05",
      "attentive_chosen_on": "val",
      "attentive_grid": {},
      "logreg_segmentation_miou": 0.5,
      "logreg_segmentation_accuracy": 0.912,
      "logreg_segmentation_iou": {"cat": 0.5},
      "logreg_segmentation_patches": 1234,
      "logreg_segmentation_c": 51.79,
      "depth_rmse": 0.4494,
      "depth_absrel": 0.1234,
      "depth_delta1": 0.875,
      "depth_head": "lr0.001",
      "depth_chosen_on": "test",
      "depth_grid": {},
    }
  )
  rows = [line.split("  ")[0] for line in text.splitlines()]
  assert "attentive, lr0.001_wd0.05, chosen on val" in rows
  assert "logistic regression of 1,234 patches, C=52" in rows
  (depth,) = [line for line in text.splitlines() if line.startswith("depth, lr0.001")]
  assert depth.split()[-4:] == ["0.449", "m", "0.123", "87.5%"]


def test_results_of_unknown_names_are_shown_as_they_are():
  text = table.render(
    {"segmentation_miou": 0.51234567, "note": "x", "knn_top1_k1": 1.0}
  )
  assert text.split() == [
    *("value", "segmentation_miou", "0.5123", "note", "x"),
    *("top-1", "k-NN,", "k=1", "100.0%"),
  ]


def test_the_head_of_the_linear_protocol_stands_in_its_row():
  text = table.render(
    {
      "linear_top1": 0.5,
      "linear_top5": 0.75,
      "linear_head": "cls4_lr0.1",
      "linear_chosen_on": "val",
      "linear_grid": {"cls4_lr0.1": 0.5},
    }
  )
  assert "linear, cls4_lr0.1, chosen on val" in text and "grid" not in text


def test_no_results_are_an_empty_table():
  assert table.render({}) == ""
