"""dinojax: DINOv2 pre-training in JAX. This file holds the version.

`python -m dinojax.VERB` imports it before all else, so that Ctrl-C and SIGTERM are
answered from here on. Any other import of dinojax does nothing.
"""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # as long as Python looks for the module to run
  from dinojax.runtime import signals

  signals.end_at_once()
