"""The training run that benchmarks time: the commands' own data, method and trainer, on phantom volumes in `folder`."""

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir

from dualseg.command.quiet import quiet
from dualseg.configuration import conf_dir
from dualseg.data import SemiSupervisedDataModule
from dualseg.methods import SegmentationMethod
from dualseg.runs.folder import RunFolder
from dualseg.training import assembly, provenance
from dualseg.training.settings import resolve
from dualseg.training.trainer import build_trainer


def training(
    folder: Path, iterations: int, overrides: Sequence[str], accelerator: str = "cpu"
) -> tuple[RunFolder, SemiSupervisedDataModule, SegmentationMethod, pl.Trainer]:
    """Everything that `dualseg-train` with these overrides calls `fit` with; training volumes are read."""
    quiet()
    settings = [
        f"data.root={folder / 'phantom'}",
        "+data.source.train=8",
        "+data.source.test=1",
        f"output={folder}",
        f"trainer.max_iterations={iterations}",
        f"trainer.accelerator={accelerator}",
        "trainer.progress_bar=false",
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = resolve(compose("train", overrides=[*settings, *overrides]))
    run = RunFolder.of(config)
    data = assembly.build_data(config)
    method = assembly.build_method(config, data.source)
    data.setup("fit")
    run.open(config)
    facts = {"dataset": config["data"]["name"], "fingerprint": data.fingerprint(), **data.cases_used}
    provenance.start(run.manifest_file, provenance.describe(config["seed"], facts), resumed_at=0)
    return run, data, method, build_trainer(config, run, resumed_at=0, resume_command="")
