"""Sound files of every format that is read, and what reads them; see fuzz.py."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Callable

import numpy as np
from absl import flags
from PIL import Image, PngImagePlugin

from dinojax import errors
from dinojax.curation import examine, inputs, jobs
from dinojax.data import augment, eval_batches, geometry, images, photometric, sources

SIDE = 16  # of what an evaluation sees
SETTINGS = jobs.Settings(
  **dict(min_side=1, max_aspect=0, max_pixels=images.MAX_PIXELS, animated=True),
  **dict(shorter_side=32, quality=90, exact="pixels", near_bits=6, near_difference=5.5),
  **dict(near_cosine=0, clusters=4, sample=0, records_per_shard=10, seed=0),
  **dict(image_column="", label_column=""),
)
NOWHERE = pathlib.Path("/nowhere")
JOB = jobs.Job(SETTINGS, out=NOWHERE, work=NOWHERE, hang_minutes=0)
# Values that JSON may hold where others are expected.
ODD = [
  None,
  True,
  -1,
  0,
  1 << 70,
  1e400,
  0.5,
  "",
  "x",
  "../../x",
  [],
  {},
  [1],
  {"a": 1},
]
ODD += ["DEEP", "x" * 10_000]
CROP = dict(
  size=16,
  area=(0.05, 1.0),
  aspect=(3 / 4, 4 / 3),
  geometry=dataclasses.asdict(geometry.Geometry(10, 5, 0.1, True)),
  flip_prob=0.5,
  jitter=dataclasses.asdict(photometric.Jitter(0.8, 0.4, 0.4, 0.2, 0.1)),
  grey_prob=0.2,
  blur=dataclasses.asdict(photometric.Blur(0.5, (0.1, 2.0), 9)),
  solarize_prob=0.2,
)


@dataclasses.dataclass
class Sample:
  """Sound files, and what reads them.

  read: folder -> what was found of each record, None if it is corrupt. It raises
  errors.UserError, and nothing else. records: the records of a file, if damage to its
  content must leave all others as they are.
  """

  files: dict[str, bytes]
  read: Callable[[pathlib.Path], list]
  records: dict[str, int] = dataclasses.field(default_factory=dict)
  weight: float = 1.0  # how often it is drawn


def picture(seed=0, size=(48, 40)):
  """Soft blobs in colour."""
  cells = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
  return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def encode(image, kind, **options):
  """An encoded image."""
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def read_image(data: bytes) -> np.ndarray | None:
  """What every reader of one image finds, None if it is corrupt; they must agree."""
  rng = np.random.default_rng(0)
  multi_crop = augment.make_multi_crop(
    global1=CROP, global2=CROP, local=CROP, num_local=2
  )
  record = inputs.Record(0, "name", data, -1, "")
  row, detail = examine.examine(record, SETTINGS)
  assert "\n" not in detail
  try:
    pixels = images.decode(data)
  except ValueError as error:
    _check_reason(str(error))
    assert row["reason"], "ingest keeps what cannot be decoded"
    with contextlib.suppress(ValueError):
      assert not multi_crop(rng, data), "training reads what cannot be decoded"
    return None
  assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
  assert not row["reason"], detail
  crops = multi_crop(rng, data)
  assert crops["local_crops"].shape == (2, 16, 16, 3)
  images.decode(examine.shrunk(data, SETTINGS))
  return pixels


def _check_reason(reason):
  assert reason and "\n" not in reason and "object at 0x" not in reason, reason
  assert "not enough memory" not in reason, reason


def read_source(spec: str) -> list:
  """The pixels of every record, as embed and ingest read them."""
  flags.FLAGS.mark_as_parsed()  # Grain reads its own
  source = sources.open_source(spec, field="--images")
  batches = eval_batches.open_batches(
    source, batch_size=4, rows=range(4), resize=SIDE, crop=SIDE, workers=0
  )
  found = {}
  for batch in batches:
    for i, index in enumerate(batch["index"].tolist()):
      if index >= 0:
        found[index] = batch["image"][i].tobytes() if batch["valid"][i] else None
      if index >= 0 and not batch["valid"][i]:
        _check_reason(batch["bad_records"]["reason"][i].decode())
  assert sorted(found) == list(range(len(source)))
  for index in found:
    assert source.name(index).isprintable()
  kept = sum(x is not None for x in ingest(spec))
  assert kept == sum(x is not None for x in found.values()), "ingest reads other images"
  return [found[index] for index in range(len(source))]


def ingest(spec: str) -> list:
  """The digest of every record, as ingest examines them."""
  found = []
  for part in inputs.plan([spec], [], SETTINGS):
    for record in inputs.read(part, JOB):
      assert record.name.isprintable() and "\n" not in record.trouble
      row, _ = examine.examine(record, SETTINGS)
      found.append(None if row["reason"] else row["pixels"].tobytes())
  return found


def image_samples() -> dict[str, Sample]:
  """Images of each kind."""
  plain, exif = picture(), Image.Exif()
  exif[0x0112] = 6
  alpha = plain.copy()
  alpha.putalpha(Image.linear_gradient("L").resize(plain.size))
  text = PngImagePlugin.PngInfo()
  text.add_text("Comment", "x" * 10_000, zip=True)
  frames = dict(save_all=True, append_images=[picture(1), picture(2)])
  palette = plain.quantize(32)
  deep = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 16)
  files = {
    "baseline.jpg": encode(plain, "JPEG"),
    "progressive.jpg": encode(plain, "JPEG", progressive=True, exif=exif),
    "grey.jpg": encode(plain.convert("L"), "JPEG", quality=95),
    "cmyk.jpg": encode(plain.convert("CMYK"), "JPEG"),
    "phone.jpg": encode(plain, "MPO", **frames),
    "rgb.png": encode(plain, "PNG", pnginfo=text, exif=exif, icc_profile=b"x" * 999),
    "palette.png": encode(palette, "PNG", transparency=3),
    "alpha.png": encode(alpha, "PNG"),
    "deep.png": encode(deep, "PNG"),
    "bits.png": encode(plain.convert("1"), "PNG"),
    "animation.png": encode(plain, "PNG", **frames),
    "lossy.webp": encode(plain, "WEBP", exif=exif),
    "lossless.webp": encode(alpha, "WEBP", lossless=True),
    "animation.webp": encode(plain, "WEBP", **frames),
    "rgb.bmp": encode(plain, "BMP"),
    "palette.bmp": encode(palette, "BMP"),
    "still.gif": encode(palette, "GIF", transparency=3, comment=b"x" * 300),
    "animation.gif": encode(plain, "GIF", disposal=2, **frames),
  }

  def read(folder):
    (path,) = folder.iterdir()
    return [read_image(path.read_bytes())]

  return {name: Sample({name: data}, read) for name, data in files.items()}


def _png(seed):
  return encode(picture(seed, (12, 9)), "PNG")


def _tar(mode):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as tar:
    for i in range(6):
      for ending, content in (("cls", str(i % 3).encode()), ("png", _png(i))):
        member = tarfile.TarInfo(f"part.a/{i:04}.{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
  return file.getvalue()


def _parquet():
  import pyarrow
  from pyarrow import parquet

  rows = [{"bytes": _png(i), "path": f"{i}.png"} for i in range(6)]
  table = pyarrow.table({"image": rows, "label": [i % 3 for i in range(6)]})
  file = io.BytesIO()
  parquet.write_table(table, file, row_group_size=3)
  return file.getvalue()


def _array_record(folder):
  from array_record.python import array_record_module
  from tensorflow_datasets.proto import tf_example_pb2

  path = folder / "sample.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for i in range(6):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(_png(i))
    example.features.feature["label"].int64_list.value.append(i % 3)
    writer.write(example.SerializeToString())
  writer.close()
  return path.read_bytes()


def source_samples(folder: pathlib.Path) -> dict[str, Sample]:
  """Sets of images in each kind of container."""

  def reader(kind, pattern=""):
    return lambda folder: read_source(f"{kind}:{folder}{pattern}")

  classes = {f"{name}/{i}.png": _png(i) for i in range(3) for name in ("cat", "dog")}
  labels = b"cat\ndog\nowl\n"

  def compressed(folder):
    return ingest(f"tar:{folder}/*")

  shard = {"0.array_record": _array_record(folder), "label.labels.txt": labels}
  return {
    "folder": Sample(classes, reader("folder"), dict.fromkeys(classes, 1)),
    "tar": Sample({"0.tar": _tar("w")}, reader("tar", "/*")),
    "tar.gz": Sample({"0.tar.gz": _tar("w:gz")}, compressed),
    "tar.xz": Sample({"0.tar.xz": _tar("w:xz")}, compressed, weight=0.5),
    "parquet": Sample({"0.parquet": _parquet()}, reader("parquet", "/*.parquet")),
    "arrayrecord": Sample(shard, reader("arrayrecord", "/*.array_record")),
  }


def weight_samples(folder: pathlib.Path) -> dict[str, Sample]:
  """Weights in each format, and a run's checkpoint."""
  import jax
  import jax.numpy as jnp

  from dinojax import checkpoint
  from dinojax.weights import formats, model

  network = dict(patch_size=2, pos_grid=2, width=64, depth=1, heads=1, registers=0)
  network |= model.DEFAULTS | dict(ffn="mlp", pool="cls")
  rotary = network | dict(positions="rope", qkv_bias="no_key", norm_eps=1e-5)
  rng = np.random.default_rng(0)

  def draw(network):
    shapes = {"backbone": model.shapes(network)}
    fill = lambda x: rng.normal(size=x.shape).astype(x.dtype)  # noqa: E731
    return model.Weights(network, jax.tree.map(fill, shapes))

  weights, dinov3 = draw(network), draw(rotary | dict(registers=2))
  written = {
    "dinojax": (weights, "dinojax", "weights"),
    "released": (weights, "released", "hub.pth"),
    "teacher": (weights, "teacher", "teacher.pth"),
    "huggingface": (weights, "huggingface", "folder"),
    "released DINOv3": (dinov3, "released", "dinov3.pth"),
    "huggingface DINOv3": (dinov3, "huggingface", "dinov3"),
  }
  samples = {}

  def read(folder, name):
    found = formats.read(str(folder / name), parts=("backbone", "dino_head"))
    return [x.tobytes() for x in jax.tree.leaves(found.params["backbone"])]

  for kind, (saved, format_name, name) in written.items():
    formats.write(saved, str(folder / name), format_name)
    files = _files(folder, name)
    read_it = functools.partial(read, name=name)
    samples[f"weights, {kind}"] = Sample(files, read_it, weight=0.5)
  whole = folder / "folder" / "model.safetensors"
  samples["weights, safetensors"] = Sample(
    {"model.safetensors": whole.read_bytes()},
    functools.partial(read, name="model.safetensors"),
  )
  config = (folder / "folder" / "config.json").read_bytes()
  index = {"weight_map": dict.fromkeys(_tensors(whole), "a.safetensors")}
  files = {
    "a.safetensors": whole.read_bytes(),
    "config.json": config,
    "model.safetensors.index.json": json.dumps(index).encode(),
  }
  files = {f"sharded/{name}": data for name, data in files.items()}
  samples["weights, index"] = Sample(files, functools.partial(read, name="sharded"))

  state = {"step": np.int32(3), "student": {"w": rng.normal(size=(3, 4))}}
  state = jax.tree.map(jnp.asarray, state)
  saver = checkpoint.Checkpoints(folder / "run", every=1, keep_last=3, keep_best=0)
  with contextlib.closing(saver):
    for step in (2, 3):
      record = {"step": step, "data_fingerprint": "f", "config": {"seed": 0}}
      saver.save(step, state, record)

  def restore(folder):
    opened = checkpoint.Checkpoints(folder / "run", every=1, keep_last=3, keep_best=0)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with contextlib.closing(opened):
      try:
        found, _ = opened.restore(abstract, check=lambda record: record["config"])
      except errors.UserError as error:
        raise AssertionError("damage to one checkpoint costs the other") from error
    jax.tree.map(np.testing.assert_array_equal, found, state)
    return []

  files = _files(folder, "run")
  samples["restore"] = Sample(files, restore, weight=0.3)
  return samples


def _files(folder, name):
  path = folder / name
  paths = [path] if path.is_file() else [x for x in path.rglob("*") if x.is_file()]
  return {str(x.relative_to(folder)): x.read_bytes() for x in sorted(paths)}


def _tensors(path):
  import safetensors

  with safetensors.safe_open(path, "np") as file:
    return list(file.keys())


def make(folder: pathlib.Path) -> dict[str, Sample]:
  """All samples, by name. folder: an empty one, to write in."""
  return image_samples() | source_samples(folder) | weight_samples(folder)


def repair(name: str, data: bytes) -> bytes:
  """Makes checksums right again, so that what lies behind them is tried, too."""
  data = bytearray(data)
  if name.endswith(".png"):
    start = 8
    while start + 12 <= len(data):
      (length,) = struct.unpack_from(">I", data, start)
      end = start + 8 + length
      if end + 4 > len(data):
        break
      struct.pack_into(">I", data, end, zlib.crc32(data[start + 4 : end]))
      start = end + 4
  if name.endswith(".tar"):
    for start in range(0, len(data) - 511, 512):
      if data[start + 257 : start + 262] == b"ustar":
        data[start + 148 : start + 156] = b" " * 8
        total = sum(data[start : start + 512])
        data[start + 148 : start + 156] = f"{total:06o}\0 ".encode()
  return bytes(data)


def change_json(rng: np.random.Generator, data: bytes) -> bytes:
  """Replaces, removes or renames one value of a JSON object."""
  tree = json.loads(data)
  node, key = {"": tree}, ""
  while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
    node = node[key]
    keys = list(node) if isinstance(node, dict) else range(len(node))
    key = keys[rng.integers(len(keys))]
  step = rng.integers(4)
  if step == 0 and node != {"": tree}:
    del node[key]
  elif step == 1 and isinstance(node, dict):
    node["x\ny"] = node.pop(key)
  else:
    node[key] = ODD[rng.integers(len(ODD))]
  return (
    json.dumps(node.get("", tree) if "" in node else tree)
    .encode()
    .replace(b'"DEEP"', b"[" * 100_000 + b"]" * 100_000)
  )


def add_metadata(rng: np.random.Generator, name: str, data: bytes) -> bytes:
  """An image with more metadata, of rubbish: its pixels must stay as they are."""
  content = rng.bytes(int(rng.integers(0, 60)))
  if name.endswith(".jpg"):
    prefix = [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"MPF\0II*\0", b"ICC_PROFILE\0"]
    prefix += [b"Photoshop 3.0\08BIM", b"http://ns.adobe.com/xap/1.0/\0"]
    marker = rng.choice([*range(0xE1, 0xEE), 0xEF, 0xFE])
    content = prefix[rng.integers(len(prefix))] + content
    added = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    return data[:2] + added + data[2:] + rng.bytes(int(rng.integers(0, 60)))
  if name.endswith(".png"):
    kinds = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"cHRM", b"sRGB"]
    kinds += [b"sBIT", b"bKGD", b"hIST", b"tIME", b"fcTL", b"abCd"]
    kind = kinds[rng.integers(len(kinds))]
    crc = zlib.crc32(kind + content) ^ int(rng.integers(2))
    added = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
    start = 33 if rng.random() < 0.5 else len(data) - 12
    return data[:start] + added + data[start:]
  if name.endswith(".webp"):
    kind = [b"EXIF", b"XMP ", b"ICCP", b"abcd"][rng.integers(4)]
    if kind == b"EXIF" and name == "lossy.webp":
      kind = b"XMP "  # its own EXIF counts
    content += bytes(len(content) % 2)
    data += kind + struct.pack("<I", len(content)) + content
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
  if name.endswith(".gif"):
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kind = rng.choice([0xFE, 0xFF, 0x01, 0x77])
    added = bytes([0x21, kind, len(content)]) + content if content else b""
    return data[:start] + added + (b"\0" if content else b"") + data[start:]
  return data + content
