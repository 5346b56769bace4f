"""Memory of the C library on CPU: kept between steps instead of given back.

XLA allocates the arena of a program's temporaries anew for each execution, and glibc
returns such large pieces to the system at once: each step then waits for thousands of
pages to be zeroed again.
"""

import ctypes

# Of glibc's malloc.h: never map large pieces by themselves, never trim the heap, one
# arena for all threads (or threads without the main arena would map after all).
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8


def keep_pages() -> None:
  """Makes this process keep what it frees; without glibc, changes nothing."""
  libc = ctypes.CDLL(None)
  if hasattr(libc, "mallopt"):
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    libc.mallopt(M_ARENA_MAX, 1)
