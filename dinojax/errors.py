"""What ends a command early, and what its exit status tells whoever started it.

  0        done
  1        the same command would end so again: a UserError, or a fault of ours with
           its traceback. Not to be started again before something is changed.
  75       the same command goes on from what is saved: no progress for too long, other
           processes that are lost or did not come. Worth some further starts, counted,
           since a cause that stays brings it back.
  128 + n  ended by signal n, and all is saved: a machine is taken back (143), or a
           Ctrl-C (130). Worth a further start each time.

A process that is killed, or aborted by what lies below Python, has a status of none of
these kinds; it is to be treated as 75.
"""

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


class UserError(Exception):
  """A bad config, path, image folder or workdir: names field, value and way out.

  Entry points print it as a single line.
  """

  status = 1


class TemporaryError(UserError):
  """What the same command may not meet again."""

  status = TRY_AGAIN
