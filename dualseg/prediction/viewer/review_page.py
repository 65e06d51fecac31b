"""`dualseg-predict ... report=true`: one HTML page that needs nothing but itself."""

import json
import math
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.files import replacing, write_text
from dualseg.prediction.review import Row, reasons_to_look
from dualseg.prediction.viewer.display import DisplayCopy, display_copy
from dualseg.reporting import figures
from dualseg.reporting.html import render

SCAN_BYTES = 10_000_000
PAGE_BYTES = 400_000_000  # of all scans: a browser holds the page in memory as a whole
KINDS = ("image", "label", "uncertainty")  # of the files of a copy
SHOWN = ("shape", "extent", "start", "window", "copy")
_COPY = re.compile(r'<script type="text/plain" id="(\w+)-(\d+)">([\w+/=]*)</script>')
_STATE = re.compile(r'<script type="application/json" id="state">(.*)</script>')
NIIVUE = Path(__file__).parent / "niivue"
CLASS_COLOURS = (figures.SKY, figures.YELLOW, figures.GREEN, figures.ORANGE, figures.PURPLE, figures.VERMILLION)


def copies_of(page: Path) -> set[str]:
    """Names of the scans whose display copies lie in a page, or beside it since a prediction was stopped."""
    return {file.stem for file in _folder_of(page).glob("*.txt")} | {scan for scan, _ in _scans_of(page).values()}


def is_finished(page: Path) -> bool:
    """It is written, and no scan was added since."""
    return page.is_file() and not _folder_of(page).exists()


class ReviewPage:
    """Takes scan after scan, and becomes a page when all are known.

    Until then the display copies lie in a hidden folder beside the page, by which a killed prediction goes on. To a
    page that is there scans can be added: its copies are taken out of it again.

    Args:
        path: of the page.
        class_names: of all K classes, background first.
        scans: how many may come: of very many, each has less room.
        window: values of the scans that are shown as black and white; None: of each scan those around its label.

    Raises:
        DualsegError: the folder cannot be written to.
    """

    def __init__(
        self, path: Path, class_names: Sequence[str], scans: int, window: tuple[float, float] | None = None
    ) -> None:
        self.path = path
        self.class_names = tuple(class_names)
        self.window = window
        self.limit = min(SCAN_BYTES, PAGE_BYTES // max(1, scans))
        self._folder = _folder_of(path)
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DualsegError(f"{path}: cannot be written ({error}); check permissions and free space.") from error
        if path.is_file():
            self._take_out()

    def __contains__(self, scan: str) -> bool:
        """Its display copy is there."""
        return self._file(scan).is_file()

    def add(self, scan: str, image: Image, label: np.ndarray, entropy: np.ndarray) -> None:
        """Keep the display copy of a scan; see `display_copy`.

        Raises:
            DualsegError: there is no room; the page does not have this scan then.
        """
        copy = display_copy(image, label, entropy, self.limit, self.window)
        self._keep(scan, {kind: getattr(copy, kind) for kind in KINDS}, _display(copy, len(image.array)))

    def _keep(self, scan: str, files: Mapping[str, str], shown: Mapping[str, Any]) -> None:
        write_text(self._file(scan), "\n".join([json.dumps(shown), *(files[kind] for kind in KINDS), ""]))

    def _file(self, scan: str) -> Path:
        """A line for what the page says of a copy, and one for each of its files."""
        return self._folder / f"{scan}.txt"

    def _shown(self, scan: str) -> dict[str, Any]:
        with self._file(scan).open(encoding="ascii") as file:
            return json.loads(file.readline())

    def _take_out(self) -> None:
        """Keep the copies of the page that is there."""
        named = _scans_of(self.path)
        files: dict[str, str] = {}
        with self.path.open(encoding="utf-8", errors="replace") as page:
            for match in filter(None, map(_COPY.match, page)):
                files[match[1]] = match[3]
                if len(files) == len(KINDS) and match[2] in named:
                    scan, shown = named.pop(match[2])
                    if scan not in self:  # else it is newer
                        self._keep(scan, files, shown)
                    files = {}
        if named:
            raise DualsegError(f"{self.path}: damaged; remove it, and its scans are predicted again.")

    def write(self, rows: Sequence[Row], networks: Sequence[str]) -> None:
        """Write the page of the scans that were predicted and added, the most uncertain first.

        Args:
            rows: of all scans; failed ones are named.
            networks: whose mean the prediction is.

        Raises:
            DualsegError: it cannot be written; then nothing of it stays, but the display copies do.
        """
        shown = [row.scan for row in rows if not row.problem and row.scan in self]
        room = secrets.token_hex()  # where the template leaves room for the copies; no name of a scan can hold it
        head, tail = self._render(rows, shown, networks, room).encode().split(room.encode())
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            file.write(head)
            for number, scan in enumerate(shown):
                lines = self._file(scan).read_text(encoding="ascii").splitlines()[1:]
                for kind, line in zip(KINDS, lines, strict=True):
                    file.write(f'<script type="text/plain" id="{kind}-{number}">{line}</script>\n'.encode("ascii"))
            file.write(tail)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _render(self, rows: Sequence[Row], shown: Sequence[str], networks: Sequence[str], room: str) -> str:
        from markupsafe import Markup

        reasons = dict(zip((row.scan for row in rows), reasons_to_look(rows), strict=True))
        numbers = {scan: number for number, scan in enumerate(shown)}
        scans = [
            _entry(row, reasons[row.scan], numbers[row.scan], self._shown(row.scan), len(networks) > 1)
            for row in sorted((row for row in rows if row.scan in numbers), key=_doubt)
        ]
        largest = max((self._file(scan).stat().st_size for scan in shown), default=0)  # of a page with fewer scans
        return render(
            Path(__file__).with_name("review.html.j2"),
            scans=scans,
            flagged=sum(bool(scan["reasons"]) for scan in scans),
            failed=[row.scan for row in rows if row.problem],
            networks=networks,
            classes=list(zip(self.class_names[1:], _colours(len(self.class_names) - 1), strict=True)),
            state={"scans": scans, "classes": self.class_names},
            heat=[_rgb(colour) for colour in figures.entropy_gradient()],
            paints=[_rgb(colour) for colour in _colours(len(self.class_names) - 1)],
            entropy_stops=figures.entropy_gradient(),
            window=self.window,
            limit=f"{max(self.limit, largest) / 1e6:.3g}",
            niivue=Markup((NIIVUE / "niivue.umd.js").read_text(encoding="utf-8")),
            licences=(NIIVUE / "LICENSES.txt").read_text(encoding="utf-8"),
            data=room,
        )


def _folder_of(page: Path) -> Path:
    return page.with_name(".display")


def _scans_of(page: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Number -> name of a scan of the page, and what it says of its copy; nothing where the page is no such one."""
    with suppress(OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
        with page.open(encoding="utf-8") as file:
            state = next(json.loads(match[1]) for line in file if (match := _STATE.match(line)))
        scans = {str(scan["number"]): (scan["name"], {key: scan[key] for key in SHOWN}) for scan in state["scans"]}
        return {number: scan for number, scan in scans.items() if "/" not in scan[0]}
    return {}


def _entry(
    row: Row, reasons: Sequence[str], number: int, shown: Mapping[str, Any], several_networks: bool
) -> dict[str, Any]:
    uncertainty = _share(row.measures["mean_entropy_foreground"])
    disagreement = f"networks disagree on {_share(row.measures['disagreement_foreground'])}"
    volumes = [f"{name} {ml:.2f} ml" for name, ml in row.volumes.items()]
    return {
        "name": row.scan,
        "number": number,
        "reasons": list(reasons),
        "uncertainty": uncertainty,
        "facts": [f"uncertainty {uncertainty}", *([disagreement] if several_networks else []), *volumes],
        **shown,
    }


def _display(copy: DisplayCopy, channels: int) -> dict[str, Any]:
    """What the page says of a copy, and starts from; all but the files. Its keys are `SHOWN`."""
    own, shown = (" x ".join(f"{mm:.3g}" for mm in spacing) for spacing in (copy.scan_spacing, copy.spacing))
    words = [
        f"8-bit display copy of {copy.size / 1e6:.2f} MB",
        f"{' x '.join(map(str, copy.shape))} voxels of {shown} mm",
        *([f"the scan's are of {own} mm"] if own != shown else []),
        *([f"channel 1 of {channels}"] if channels > 1 else []),
    ]
    extent = [n * mm for n, mm in zip(copy.shape, copy.spacing, strict=True)]
    told = " \N{MIDDLE DOT} ".join(words)
    return {"shape": copy.shape, "extent": extent, "start": copy.start, "window": copy.window, "copy": told}


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
