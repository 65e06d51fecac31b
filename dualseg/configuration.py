"""Where the configuration tree lies: what runs reads its defaults there, and commands compose it. No torch here."""

from pathlib import Path


def conf_dir() -> Path:
    """The configuration tree: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
