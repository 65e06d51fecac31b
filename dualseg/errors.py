"""The exceptions whose message alone a user needs to see."""


class DualsegError(ValueError):
    """Something the user can mend; the message names the file or key and the mend. Entry points exit with code 2."""


class Interrupted(Exception):  # noqa: N818 - no error: the run did what was asked
    """Ctrl-C, answered with a checkpoint; the message says how to resume. Entry points exit with code 130."""
