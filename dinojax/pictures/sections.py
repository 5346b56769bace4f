"""Sections of a page that answer to the mouse: similarity of patches, map of images."""

from collections.abc import Sequence

import numpy as np

from dinojax.pictures import drawing, planes, similarity, tables

MAP_SIDES = ((1_000, 64), (4_000, 40), (1 << 60, 28))  # images, pixels of a thumbnail


def thumb_side(count: int) -> int:
  """Pixels of a side of the thumbnails of so many images: 10,000 take some MB."""
  return next(side for most, side in MAP_SIDES if count <= most)


def similarity_section(
  images: Sequence[np.ndarray],
  tokens: np.ndarray,
  captions: Sequence[str],
  *,
  grid: tuple[int, int],
) -> dict:
  """Images of which a patch can be chosen, and its similarity to the others seen.

  Args:
    images: uint8 [S, S, 3] each.
    tokens: [I, N, D], the patch tokens.
    captions: of the images.
    grid: patches of a column and of a row; N is their product.
  """
  shown = [
    {
      "image": tables.photo_uri(image),
      "caption": caption,
      # A grey picture: row i is the similarity of patch i to all patches.
      "matrix": tables.uri(similarity.patch_bytes(patches), "png"),
    }
    for image, patches, caption in zip(images, tokens, captions, strict=True)
  ]
  return {
    "kind": "similarity",
    "name": "similarity",
    "title": "Similarity of patches",
    "text": "Choose a patch: by a click, or with the arrow keys. The map shows the"
    " cosine similarity of its token to each patch of the image. A backbone that has"
    " learnt parts and objects lights up the patches that belong together.",
    "grid": list(grid),
    "images": shown,
    "stops": drawing.STOPS.astype(int).tolist(),
  }


def similarity_table(
  images: Sequence[np.ndarray],
  tokens: np.ndarray,
  captions: Sequence[str],
  *,
  grid: tuple[int, int],
) -> tables.Table:
  """The same without a mouse: three patches of each image, and their similarity."""
  height, width = grid
  chosen = [(height // 2, width // 2), (height // 4, width // 4)]
  chosen.append((3 * height // 4, width // 2))
  rows = []
  for image, patches, caption in zip(images, tokens, captions, strict=True):
    near = similarity.of_byte(similarity.patch_bytes(patches))
    side = image.shape[0] / height, image.shape[1] / width
    cells = []
    for i, j in chosen:
      box = np.array([[j, i], [j + 1, i], [j + 1, i + 1], [j, i + 1]]) * side[::-1]
      wide = max(image.shape[0] // 60, 1)
      marked = drawing.outlined(image, [box], [(255, 60, 60)], width=wide)
      row = near[i * width + j].reshape(height, width)
      cells.append(tables.Cell(marked, caption))
      heat = drawing.heat(drawing.stretched(row))
      cells.append(tables.Cell(heat, f"from {row.min():.2f} to 1", squares=True))
    rows.append(cells)
  return tables.Table(
    "similarity",
    "Similarity of patches",
    "Each map shows the cosine similarity of the token of the framed patch to all.",
    ("patch", "similarity") * 3,
    rows,
  )


def map_section(
  views: dict[str, np.ndarray],
  thumbs: np.ndarray,
  labels: np.ndarray,
  names: Sequence[str],
  classes: tuple[str, ...],
) -> dict:
  """Images as dots in a plane, coloured by label, with thumbnails on hover.

  Args:
    views: [M, 2] each, by the name of the method.
    thumbs: uint8 [M, t, t, 3].
    labels: int [M]; below 0: none.
    names: of the images.
    classes: by label; () without labels.
  """
  sheet, columns = drawing.sprites(thumbs)
  return {
    "kind": "map",
    "name": "map",
    "title": "Map of the images",
    "text": f"Each dot is one of {len(labels):,} images, placed so that images with"
    " similar features are close. Point at a dot, or move with the arrow keys, to see"
    " its image; choose a class to see it alone. Two dimensions show only a part of"
    " what separates images.",
    "views": [
      {"name": name, "points": planes.to_steps(points).ravel().tolist()}
      for name, points in views.items()
    ],
    "extent": planes.STEPS,
    "labels": labels.tolist(),
    "names": list(names),
    "classes": list(classes),
    "colours": planes.colours(len(classes)),
    "sprite": tables.uri(sheet, "webp"),
    "columns": columns,
    "side": thumbs.shape[1],
  }
