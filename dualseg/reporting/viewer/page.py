"""`dualseg-predict ... report=true`: one HTML page that needs nothing but itself."""

import math
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.files import replacing
from dualseg.prediction.review import Row, reasons_to_look
from dualseg.reporting import figures
from dualseg.reporting.html import render
from dualseg.reporting.viewer.display import DisplayCopy, display_copy

SCAN_BYTES = 10_000_000
PAGE_BYTES = 400_000_000  # of all scans: a browser holds the page in memory as a whole
NIIVUE = Path(__file__).parents[1] / "niivue"
CLASS_COLOURS = (figures.SKY, figures.YELLOW, figures.GREEN, figures.ORANGE, figures.PURPLE, figures.VERMILLION)


class ReviewPage:
    """Takes scan after scan, and becomes a page when all are known.

    Until then the display copies lie in a file without a name in the page's folder: nothing of it stays, however the
    program ends. Use it in a `with` block.

    Args:
        path: of the page.
        class_names: of all K classes, background first.
        scans: how many may come: of very many, each has less room.

    Raises:
        DualsegError: the folder cannot be written to.
    """

    def __init__(self, path: Path, class_names: Sequence[str], scans: int) -> None:
        self.path = path
        self.class_names = tuple(class_names)
        self.limit = min(SCAN_BYTES, PAGE_BYTES // max(1, scans))
        self._copies: dict[str, tuple[int, dict[str, Any]]] = {}
        try:
            self._data = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        except OSError as error:
            raise DualsegError(f"{path}: cannot be written ({error}); check permissions and free space.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._data.close()

    def add(self, scan: str, image: Image, label: np.ndarray, entropy: np.ndarray) -> None:
        """Keep the display copy of a scan; see `display_copy`.

        Raises:
            OSError: there is no room; the page does not have this scan then.
        """
        copy = display_copy(image, label, entropy, self.limit)
        number = len(self._copies)
        end = self._data.seek(0, 2)
        try:
            for kind in ("image", "label", "uncertainty"):
                text = f'<script type="text/plain" id="{kind}-{number}">{getattr(copy, kind)}</script>\n'
                self._data.write(text.encode("ascii"))
            self._data.flush()
        except OSError:
            self._data.truncate(end)
            raise
        self._copies[scan] = number, _display(copy, len(image.array))

    def write(self, rows: Sequence[Row], networks: Sequence[str]) -> None:
        """Write the page of the scans that were predicted and added, the most uncertain first.

        Args:
            rows: of all scans; failed ones are named.
            networks: whose mean the prediction is.

        Raises:
            DualsegError: it cannot be written; then nothing of it stays.
        """
        room = secrets.token_hex()  # where the template leaves room for the copies; no name of a scan can hold it
        head, tail = self._render(rows, networks, room).encode().split(room.encode())
        self._data.seek(0)
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            file.write(head)
            shutil.copyfileobj(self._data, file, 1 << 20)
            file.write(tail)

    def _render(self, rows: Sequence[Row], networks: Sequence[str], room: str) -> str:
        from markupsafe import Markup

        reasons = dict(zip((row.scan for row in rows), reasons_to_look(rows), strict=True))
        shown = sorted((row for row in rows if row.scan in self._copies and not row.problem), key=_doubt)
        scans = [self._entry(row, reasons[row.scan]) for row in shown]
        return render(
            "viewer/review.html.j2",
            scans=scans,
            flagged=sum(bool(scan["reasons"]) for scan in scans),
            failed=[row.scan for row in rows if row.problem],
            networks=networks,
            classes=list(zip(self.class_names[1:], _colours(len(self.class_names) - 1), strict=True)),
            state={"scans": scans, "classes": self.class_names},
            heat=[_rgb(colour) for colour in figures.entropy_gradient()],
            paints=[_rgb(colour) for colour in _colours(len(self.class_names) - 1)],
            entropy_stops=figures.entropy_gradient(),
            limit=f"{self.limit / 1e6:.3g}",
            niivue=Markup((NIIVUE / "niivue.umd.js").read_text(encoding="utf-8")),
            licences=(NIIVUE / "LICENSES.txt").read_text(encoding="utf-8"),
            data=room,
        )

    def _entry(self, row: Row, reasons: Sequence[str]) -> dict[str, Any]:
        number, copy = self._copies[row.scan]
        uncertainty = _share(row.measures["mean_entropy_foreground"])
        disagreement = _share(row.measures["disagreement_foreground"])
        volumes = [f"{name} {ml:.2f} ml" for name, ml in row.volumes.items()]
        return {
            "name": row.scan,
            "number": number,
            "reasons": list(reasons),
            "uncertainty": uncertainty,
            "facts": [f"uncertainty {uncertainty}", f"networks disagree on {disagreement}", *volumes],
            **copy,
        }


def _display(copy: DisplayCopy, channels: int) -> dict[str, Any]:
    """What the page says of a copy, and starts from; all but the files."""
    own, shown = (" x ".join(f"{mm:.3g}" for mm in spacing) for spacing in (copy.scan_spacing, copy.spacing))
    words = [
        f"8-bit display copy of {copy.size / 1e6:.2f} MB",
        f"{' x '.join(map(str, copy.shape))} voxels of {shown} mm",
        *([f"the scan's are of {own} mm"] if own != shown else []),
        f"black to white: {copy.window[0]:.4g} to {copy.window[1]:.4g}",
        *([f"channel 1 of {channels}"] if channels > 1 else []),
    ]
    extent = [n * mm for n, mm in zip(copy.shape, copy.spacing, strict=True)]
    return {"shape": copy.shape, "extent": extent, "start": copy.start, "copy": " \N{MIDDLE DOT} ".join(words)}


def _doubt(row: Row) -> tuple[bool, float]:
    """Sorts the doubtful first: of all, scans without foreground, whose uncertainty has no mean."""
    mean = row.measures["mean_entropy_foreground"]
    return not math.isnan(mean), -mean


def _share(value: float) -> str:
    return "none" if math.isnan(value) else f"{100 * value:.1f} %"


def _colours(count: int) -> list[str]:
    return [CLASS_COLOURS[index % len(CLASS_COLOURS)] for index in range(count)]


def _rgb(colour: str) -> str:
    """#RRGGBB as GLSL has it."""
    return f"vec3({', '.join(f'{int(colour[at : at + 2], 16) / 255:.3f}' for at in (1, 3, 5))})"
