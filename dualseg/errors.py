"""The exceptions whose message alone a user needs to see, what it may suggest, and how a full machine is recognised."""

import difflib
import errno
import re
import signal

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DualsegError(ValueError):
    """Something the user can fix; the message names the file or key and the fix. Entry points exit with code 2."""


class Interrupted(BaseException):
    """SIGINT (Ctrl-C) or SIGTERM asked the command to stop. Entry points exit with code 128 + the signal's number.

    No Exception: code that goes on after a case that failed, or explains a failure, lets it through.

    Args:
        number: the signal.
        message: what is kept and how to go on; empty: nothing is known of that.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = "") -> None:
        super().__init__(number, message)
        self.number, self.message = number, message

    @property
    def code(self) -> int:
        """130 or 143."""
        return 128 + self.number

    def __str__(self) -> str:
        return self.message or "stopped."


def missing_package(error: ImportError) -> str:
    """'needs X, which is not installed: pip install X', or the reason in one line where it names no module."""
    named = re.search(r"No module named '(\w+)", str(error))
    if not named:
        return str(error).split("\n")[0]
    package = {"cv2": "opencv-python", "PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"}
    return f"needs {named[1]}, which is not installed: pip install {package.get(named[1], named[1])}"


def nearest(word: str, words: list[str]) -> str:
    """' Did you mean X?' or the empty string: the end of a message about a word that is not known."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
