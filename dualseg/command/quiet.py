"""Notes of libraries that a user of a command can do nothing about: banners, tips, internal deprecations."""

import logging
import warnings

LOGGERS = (
    "lightning_fabric.utilities.distributed",  # "Initializing distributed"
    "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.utilities.rank_zero",  # hardware banners, tips
    "pytorch_lightning.accelerators.cuda",  # CUDA_VISIBLE_DEVICES
    "pytorch_lightning.trainer.connectors.checkpoint_connector",  # "`weights_only` was not set"
)
HEADERS = "nibabel.global"  # says what it corrects in a header, not in which: dualseg-check names file and fix
WARNINGS = (
    r".*does not have many workers",  # volumes are in memory: workers are seldom worth their start
    r".*isinstance.treespec, LeafSpec",  # between Lightning and torch
    r".*`srun` command is available on your system but is not used",  # we start the processes ourselves
    r".*Grad strides do not match bucket view",  # DDP, of 1x1x1 kernels, whose strides mean nothing
    r".*dataloader is not resumable",  # the sample stream is a function of the iteration: it goes on exactly
)


def quiet() -> None:
    """Let these loggers speak from WARNING on, and ignore these warnings; all others stay. Imports nothing heavy."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(HEADERS).setLevel(logging.ERROR)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
