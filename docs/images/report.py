"""Makes report.png, README's picture, from a run folder with a report; needs chromium.

.venv/bin/python docs/images/report.py runs/demo
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZE = (920, 1180)
ONLY_EXAMPLES = "<style>main > :not(#examples), header, footer {display: none !important}</style>"


def main(run: Path) -> None:
    """The top of the page and its examples, side by side."""
    picture = Image.new("RGB", (2 * SIZE[0], SIZE[1]))
    page = (run / "report.html").read_text()
    with tempfile.TemporaryDirectory() as folder:
        for place, text in enumerate((page, page.replace("</head>", f"{ONLY_EXAMPLES}</head>"))):
            html, shot = Path(folder) / f"{place}.html", Path(folder) / f"{place}.png"
            html.write_text(text)
            window = f"--window-size={SIZE[0]},{SIZE[1]}"
            command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", window, f"--screenshot={shot}"]
            subprocess.run([*command, html.as_uri()], check=True, capture_output=True, timeout=300)
            picture.paste(Image.open(shot), (place * SIZE[0], 0))
    small = picture.resize((1380, 885), Image.Resampling.LANCZOS)
    small.quantize(256, Image.Quantize.MAXCOVERAGE).save(Path(__file__).with_name("report.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
