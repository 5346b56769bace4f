"""Memory of a process: what the C library keeps on CPU, what JAX takes of a GPU.

XLA allocates a program's temporaries for each execution, and glibc returns such large
blocks to the system at once: each step then waits until a hundred thousand pages are
zeroed again, a tenth of its time. Input workers allocate images and crops, too.
"""

import ctypes
import glob
import os

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Of glibc's malloc.h: no separate mappings for large blocks, no trimming of the heap,
# and one arena for all threads, since further ones are always mapped.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8
# Of a GPU's memory, for JAX; the rest is for CUDA, cuBLAS and NCCL. JAX takes 75%.
GPU_SHARE = 0.9
GPU_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def take_gpu_memory() -> None:
  """Makes JAX take most of each GPU's memory, unless the environment says how much.

  Call it before JAX starts its devices.
  """
  if not any(name in os.environ for name in GPU_VARIABLES):
    os.environ[GPU_VARIABLES[0]] = str(GPU_SHARE)


def keep_pages(*, with_accelerators: bool = False) -> None:
  """Makes this process keep what it frees; beside accelerators only on request.

  Call it before JAX starts its threads, which get arenas of their own. It does nothing
  with other C libraries than glibc.
  """
  libc = ctypes.CDLL(None)
  usual = not any(map(glob.glob, ACCELERATORS)) or with_accelerators
  if hasattr(libc, "mallopt") and usual:
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    libc.mallopt(M_ARENA_MAX, 1)
