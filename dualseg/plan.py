"""`dualseg-plan`: how a dataset will be trained on, and why, before anything is trained."""

from typing import Any

from dualseg.command.start import run_with_hydra

HELP = """dualseg-plan data=folder data.root=DIR [any key=value of dualseg-train; see dualseg-train --help]

  Reads the header of every image, and the labels that a training with these arguments may read: spacing, intensities,
  patch, batch and networks follow from them. The plan is a YAML file beside the split, one for each list of labels.
  Training reads it, and makes it where it is not there; edit it, or delete it for a new one.

    dualseg-plan data=folder data.root=DIR
    dualseg-plan data=folder data.root=DIR plan.memory=20GiB base_channels=32
    dualseg-plan data=folder data.root=DIR data.labeled=8       # from the labels of these 8 alone
"""


def plan_config(config: Any) -> None:
    """Plan for a composed configuration, or read the plan that is there, and print it.

    Raises:
        DualsegError: nothing is left to plan, or it cannot be planned.
    """
    from pathlib import Path

    from dualseg.errors import DualsegError
    from dualseg.planning.plan_file import read, shown
    from dualseg.training.dataset import source_and_split
    from dualseg.training.settings import resolve

    settings = resolve(config)
    path = settings.get("plan")
    if path is None:
        raise DualsegError(
            "nothing is planned here: dualseg-plan is for data=folder data.root=DIR, without recipe=none."
        )
    _, split = source_and_split(settings)
    print(shown(read(Path(path), split.labeled), settings))


def main() -> None:
    """Console script."""
    run_with_hydra(plan_config, "train", help_text=HELP)


if __name__ == "__main__":
    main()
