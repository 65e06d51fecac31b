"""Pages from templates; they share style.css.j2 of this folder."""

from pathlib import Path
from typing import Any

from dualseg import __version__


def render(template: Path, **values: Any) -> str:
    """The page that the file `template` makes of `values`; every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(version=__version__, **values)
