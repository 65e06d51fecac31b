"""Write docs/methods.md: a row for each option of conf/method, from its class's docstring and one iteration."""

import inspect
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from torch import nn

from dualseg.data.batch import Batch
from dualseg.data.phantom import Phantom
from dualseg.methods import SegmentationMethod, Time
from dualseg.training import assembly
from dualseg.training.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
METHODS = sorted((ROOT / "conf" / "method").glob("*.yaml"))
HEAD = """# Methods

Written by `docs/methods.py` from `conf/method/`, the docstrings of `dualseg/methods/` and one iteration at toy size;
change those, not this page. `dualseg-train method=NAME` trains one; `+term=NAME` adds a term to any.
What came out on Left Atrium: [experiments/la_seed](../experiments/la_seed/README.md).
The equations of `dual`: [method.md](method.md). In all methods the gradient of each network is limited to a norm of 10,
which none of the papers does.

Passes: patches that go through a network in an iteration with the batch of the configuration, `+` without gradient.

| `method=` | idea | networks | batch, labeled + unlabeled | passes | result |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """The content of docs/methods.md."""
    found = [(file.stem, *built(file.stem)) for file in METHODS]
    rows = [row(name, settings, method) for name, settings, method in found]
    of_class: dict[type, list[str]] = {}
    for name, _, method in found:
        of_class.setdefault(type(method), []).append(f"`{name}`")
    notes = [
        f"## {', '.join(names)}\n\n{differences_of(kind)}\n" for kind, names in of_class.items() if differences_of(kind)
    ]
    terms = {file.stem: class_of_term(file) for file in sorted((ROOT / "conf" / "term").glob("*.yaml"))}
    notes += [f"## `+term={name}`\n\n{differences_of(kind)}\n" for name, kind in terms.items() if differences_of(kind)]
    lines = [f"| `{name}` | {idea_of(kind)} |" for name, kind in terms.items()]
    added = "| `+term=` | idea |\n| --- | --- |\n" + "\n".join(lines)
    added += (
        "\n\nUnder a method whose networks see mixed or changed images, an added term costs one more pass of the whole "
    )
    added += "batch, in training mode."
    head = "What differs from the papers and their public code:"
    return HEAD + "\n".join(rows) + "\n\n" + added + f"\n\n{head}\n\n" + "\n".join(notes)


def built(name: str) -> tuple[dict[str, Any], SegmentationMethod]:
    """The resolved configuration of an option and its method, at toy size."""
    words = [f"method={name}", "base_channels=2", "dropout=0", "data.patch_size=[16,16,16]", "data.stride=[16,16,16]"]
    words += ["plan.channels=[2,2,2]", "plan.strides=[[1,1,1],[2,2,2],[2,2,2]]", "plan.blocks=[1,1,1]"]
    words += ["plan.kernels=[[3,3,3],[3,3,3],[3,3,3]]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = resolve(compose("train", overrides=["data.root=/none", *words]), planning=False)
    source = Phantom.__new__(Phantom)  # for its classes and channels alone
    return settings, assembly.build_method(settings, source)


def row(name: str, settings: dict[str, Any], method: SegmentationMethod) -> str:
    """One line of the table."""
    networks = [f"{key}: {value['architecture']}" for key, value in settings["networks"].items()]
    networks += [f"{key}: average of {average.of}" for key, average in method.averages.items()]
    batch = settings["batch"]
    cells = [
        f"`{name}`",
        idea_of(type(method)),
        ", ".join(networks),
        f"{batch['labeled']} + {batch['unlabeled']}",
        passes(method, batch["labeled"], batch["unlabeled"]),
        method.roles.record,
    ]
    return "| " + " | ".join(cells) + " |"


def passes(method: SegmentationMethod, labeled: int, unlabeled: int) -> str:
    """Patches through all networks in the last iteration of a run: with gradient + without."""
    counts = {True: 0, False: 0}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counts[torch.is_grad_enabled()] += len(inputs[0])

    handles = [network.register_forward_pre_hook(count) for network in method.networks.values()]
    torch.manual_seed(0)
    label = torch.zeros(labeled, 16, 16, 16, dtype=torch.long)
    label[:, 4:12, 4:12, 4:12] = 1
    image = torch.randn(labeled + unlabeled, 1, 16, 16, 16)
    method.train()
    method.loss_terms(Batch(image, label, ["case"] * len(image)), Time(999, 1000))
    for handle in handles:
        handle.remove()
    return str(counts[True]) + (f" + {counts[False]}" if counts[False] else "")


def idea_of(kind: type) -> str:
    """The first sentence of a docstring."""
    return one_line((inspect.getdoc(kind) or "").partition("\n\n")[0]).removesuffix(".")


def differences_of(kind: type) -> str:
    """The paragraph of a docstring that begins with `Differences:`, without that word; empty where there is none."""
    found = re.search(r"^Differences: (.*?)(?:\n\n|\Z)", inspect.getdoc(kind) or "", re.MULTILINE | re.DOTALL)
    return one_line(found[1][:1].upper() + found[1][1:]) if found else ""


def class_of_term(file: Path) -> type:
    """The class that an option of conf/term names."""
    from hydra.utils import get_class

    ((_, setting),) = yaml.safe_load(file.read_text()).items()
    return get_class(setting["_target_"])


def one_line(text: str) -> str:
    """Without line breaks, as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
