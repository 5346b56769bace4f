"""The one exception for mistakes of the person running us.

Entry points print a `UserError` as a single line and exit with status 1; every other
exception is a fault of ours and keeps its traceback.
"""


class UserError(Exception):
  """A bad config, path, image folder or workdir: names field, value and way out."""
