"""The curves of a run in TensorBoard, beside logs/curves.csv."""

import pytorch_lightning.loggers

from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder


class TensorBoardLogger(pytorch_lightning.loggers.TensorBoardLogger):
    """Lightning's, in logs/tensorboard of the run folder; what a killed run repeats takes the place of what it was.

    Args:
        folder: of the run.
        resumed_at: iterations behind the checkpoint that the run starts from: TensorBoard forgets later points.

    Raises:
        DualsegError: TensorBoard is not installed.
    """

    def __init__(self, folder: RunFolder, resumed_at: int = 0) -> None:
        logs = folder.path / "logs"
        try:
            super().__init__(logs, "tensorboard", "", default_hp_metric=False, purge_step=resumed_at + 1)
        except ModuleNotFoundError as error:
            raise DualsegError("logger=tensorboard needs tensorboard: pip install 'dualseg[tensorboard]'.") from error
