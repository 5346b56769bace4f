"""Package metadata: `pip install -e .` to use, `pip install -e '.[test]'` to test."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dinojax/__init__.py").read_text())

setuptools.setup(
  name="dinojax",
  version=VERSION[1],
  description="DINOv2 self-supervised pre-training in JAX, from one CPU to 128 chips",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["dinojax", "dinojax.*"]),
  package_data={"dinojax.pages": ["*.css", "*.js"]},
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.8; platform_system == 'Linux'",
    "chex>=0.1.90",
    "cloudpickle>=3.0",
    "einops>=0.8",
    "flatbuffers>=24",  # jax.export writes with it
    "flax>=0.12,<0.13",
    "grain>=0.2.18,<0.3",
    "jax>=0.10,<0.12",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "opencv-python-headless>=4.10",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11.0",
    "safetensors>=0.5",
    "scikit-learn>=1.5",  # carries the quickstart's images
    "simplejpeg>=1.8,<2",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
    "uplot-python>=1.1,<2",  # carries uPlot, which draws the curves of a run's page
    "zstandard>=0.23",  # what array_record compresses by default
  ],
  extras_require={
    "cpu": [],
    # Images of any number of bands, in TIFF of any compression.
    "channels": ["tifffile>=2025.1.10", "imagecodecs>=2025.3.30"],
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "cuda": ["jax[cuda13]>=0.10,<0.12"],
    "cuda12": ["jax[cuda12]>=0.10,<0.12"],
    "cuda13": ["jax[cuda13]>=0.10,<0.12"],
    "plan": ["jax[tpu]>=0.10,<0.12"],  # its compiler works without a TPU
    "plan-gpu": [  # XLA and ptxas work without a GPU; JAX asks for cuDNN's version
      "jax[cuda13-local]>=0.10,<0.12",
      "nvidia-cuda-nvcc>=13,<14",
      "nvidia-cudnn-cu13>=9.12,<10",
    ],
    "tensorboard": ["tensorboard>=2.17"],
    "wandb": ["wandb>=0.19"],
    "mlflow": ["mlflow-skinny>=3.0", "sqlalchemy>=2", "alembic>=1.13"],
    "onnx": ["jax2onnx>=0.13,<0.14"],  # later ones ask for an older Orbax
    "torch": ["torch>=2.6"],  # reads and writes .pth
    "ingest": [
      "apache-beam>=2.70",
      "faiss-cpu>=1.9",  # near embeddings and clusters
      "psutil>=5.9",
      "pyarrow>=17",
    ],
    "launch": ["kubernetes>=31", "pyyaml>=6", "xmanager>=0.8.5,<0.9"],
    "embed": ["pyarrow>=17", "zarr>=3.1"],  # features in Parquet and Zarr
    "parquet": ["pyarrow>=17"],  # images in Parquet
    "umap": ["umap-learn>=0.5.7"],  # another map of images
    "test": [
      "alembic>=1.13",  # of mlflow
      "apache-beam>=2.70",
      "faiss-cpu>=1.9",
      "imagecodecs>=2025.3.30",  # of tifffile
      "jax2onnx>=0.13,<0.14",
      "jax[tpu]>=0.10,<0.12",  # plan_test.py compiles for TPUs that are not there
      "kubernetes>=31",
      "kubernetes-validate>=1.31",  # schemas of Kubernetes' objects
      "mlflow-skinny>=3.0",
      "onnxruntime>=1.20",
      "pandas>=2.2",  # pandas and polars read what embed_test.py writes
      "polars>=1.20",
      "psutil>=5.9",
      "pyarrow>=17",
      "pytest>=8.3",
      "pytest-xdist>=3.6",
      "pyyaml>=6",
      "ruff>=0.12",
      "selenium>=4.25",  # drives Chromium
      "tifffile>=2025.1.10",
      "torch==2.13.0",
      "sqlalchemy>=2",  # of mlflow
      "transformers>=5.0,<6",
      "wandb>=0.19",
      "xmanager>=0.8.5,<0.9",
      "zarr>=3.1",
    ],
  },
)
