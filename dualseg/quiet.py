"""Lightning's notes that a user of a command can do nothing about: banners, tips, internal deprecations."""

import logging
import warnings

LOGGERS = (
    "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.utilities.rank_zero",  # hardware banners, tips
    "pytorch_lightning.accelerators.cuda",  # CUDA_VISIBLE_DEVICES
    "pytorch_lightning.trainer.connectors.checkpoint_connector",  # "`weights_only` was not set"
)
WARNINGS = (
    r".*does not have many workers",  # volumes are in memory: workers are seldom worth their start
    r".*isinstance.treespec, LeafSpec",  # between Lightning and torch
    r".*`srun` command is available",  # a run on a machine that submits to Slurm need not be a job
    r".*dataloader is not resumable",  # the sample stream is a function of the iteration: it goes on exactly
)


def quiet() -> None:
    """Let these loggers speak from WARNING on, and ignore these warnings; all others stay. Imports nothing heavy."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
