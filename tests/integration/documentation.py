"""What the documentation has a user type: its commands and its files."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
OWN_FILES = {  # file -> the blocks that it is made of: page, marker
    "my_dataset.py": [("docs/data.md", "own-source")],
    "my_callbacks.py": [("docs/change-one-thing.md", "my-callback")],
    "my_methods.py": [("docs/change-one-thing.md", marker) for marker in ("my-term", "my-loss", "my-method")],
    "my_conf/data/mine.yaml": [("docs/data.md", "own-config")],
    "my_conf/experiment/quick.yaml": [("docs/configuration.md", "own-experiment")],
    "my_conf/method/low_entropy.yaml": [("docs/change-one-thing.md", "my-loss-config")],
    "my_conf/method/pi_model.yaml": [("docs/change-one-thing.md", "my-method-config")],
    "my_conf/term/certain.yaml": [("docs/change-one-thing.md", "my-term-config")],
    "my_conf/network/basic_unet.yaml": [("docs/change-one-thing.md", "my-network")],
}


def commands_of(page: Path) -> list[list[str]]:
    """Every line of every bash block, without environment variables before the command and comments after it."""
    found = []
    for indent, language, block in FENCE.findall(page.read_text()):
        if language != "bash":
            continue
        for line in block.splitlines():
            words = shlex.split(line.removeprefix(indent), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0] == "dualseg":  # dualseg train is dualseg-train
                words[:2] = [f"dualseg-{words[1]}"]
            if words:
                found.append(words)
    return found


def block_after(page: str, marker: str) -> str:
    """The fenced block that follows <!-- marker -->."""
    text = (ROOT / page).read_text()
    match = FENCE.search(text, text.index(f"<!-- {marker} -->"))
    assert match
    return "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines()) + "\n"


def write_own_files(folder: Path) -> None:
    """The files that the documentation has the user write."""
    for name, blocks in OWN_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(block_after(page, marker) for page, marker in blocks))
