"""The packages that `dualseg-export format=onnx` needs, which are an extra. No torch here."""

import importlib.util

from dualseg.errors import DualsegError

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raises: DualsegError where a package that `format=onnx` needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DualsegError(f"format=onnx needs {', '.join(missing)}: pip install 'dualseg[onnx]'.")
