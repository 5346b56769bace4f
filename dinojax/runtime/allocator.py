"""Allocator of the C library on CPU: freed memory is kept for the next step.

XLA allocates a program's temporaries for each execution, and glibc returns such large
blocks to the system at once: each step then waits until a hundred thousand pages are
zeroed again, a tenth of its time. Input workers allocate images and crops, too.
"""

import ctypes
import glob

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Of glibc's malloc.h: no separate mappings for large blocks, no trimming of the heap,
# and one arena for all threads, since further ones are always mapped.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8


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
