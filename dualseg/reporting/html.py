"""Pages from the templates of this folder; they share style.css.j2."""

from pathlib import Path
from typing import Any

from dualseg import __version__


def render(template: str, **values: Any) -> str:
    """The page that `template`, a path below this folder, makes of `values`; every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)
