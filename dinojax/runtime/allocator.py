"""Memory of the C library on CPU: kept between steps instead of given back.

XLA allocates a program's temporaries anew for each execution, and glibc returns such
large pieces to the system at once: each step then waits for a hundred thousand pages to
be zeroed again, a tenth of its time. Input workers allocate images and crops anew, too.
"""

import ctypes
import glob

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Of glibc's malloc.h: no mappings of their own for large pieces, no trimming of the
# heap, and one arena for all threads, since further ones are mapped all the same.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8


def keep_pages(*, with_accelerators: bool = False) -> None:
  """Makes a process keep what it frees, where there are accelerators only if asked to.

  To be called before JAX starts its threads: those have arenas of their own by then.
  Other C libraries than glibc are left alone.
  """
  libc = ctypes.CDLL(None)
  usual = not any(map(glob.glob, ACCELERATORS)) or with_accelerators
  if hasattr(libc, "mallopt") and usual:
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    libc.mallopt(M_ARENA_MAX, 1)
