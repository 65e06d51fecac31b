"""Makes this folder's helper modules, and the writers of datasets, importable under pytest's importlib mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "preparation"))
sys.path.insert(2, str(Path(__file__).parents[1] / "data"))
