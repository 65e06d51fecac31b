"""The small networks and volumes of tests/methods serve here too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
