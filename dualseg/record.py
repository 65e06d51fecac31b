"""Which prediction stands for a run: one rule, for all that show or use runs. No torch here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dualseg.errors import DualsegError
from dualseg.names import check_network_names

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Roles:
    """What the networks of a trained run are.

    Attributes:
        averages: averaged network -> the network that it follows.
        ensemble: the networks whose mean is the ensemble.
        record: the prediction that stands for the run: a network, an average, or `ensemble`.
    """

    averages: Mapping[str, str]
    ensemble: tuple[str, ...]
    record: str

    @property
    def members(self) -> tuple[str, ...]:
        """The networks whose mean stands for the run."""
        return self.ensemble if self.record == ENSEMBLE else (self.record,)


def roles_of(noted: Mapping[str, Any], networks: Collection[str], where: str) -> Roles:
    """What a checkpoint notes of its networks; one of a version that noted nothing has no averages.

    Args:
        noted: `checkpoint["dualseg"]`.
        networks: names of those that the configuration names.
        where: which checkpoint, for messages.

    Raises:
        DualsegError: it notes what cannot be.
    """
    averages, ensemble = noted.get("averages", {}), noted.get("ensemble", list(networks))
    if averages:
        check_network_names(f"{where}: averages", averages)
    known = [*networks, *averages]
    record = noted.get("record", ENSEMBLE if len(networks) > 1 else next(iter(networks)))
    good = (
        set(averages.values()) <= set(networks)
        and isinstance(ensemble, list)
        and ensemble
        and all(name in known for name in ensemble)
        and (record in known or (record == ENSEMBLE and len(ensemble) > 1))
    )
    if not good:
        raise DualsegError(
            f"{where}: says of its networks what does not fit config.yaml (averages {averages}, ensemble {ensemble}, "
            f"record {record}; networks {sorted(networks)}); restore the files that the run wrote."
        )
    return Roles(averages, tuple(ensemble), record)


def record_of(noted: Any, networks: Collection[str]) -> str | None:
    """The one of `networks` whose results stand for a run; None where there are none.

    Args:
        noted: `record` of metrics.json. Older runs have none: then the ensemble, else network a, else the first.
        networks: with results.
    """
    if isinstance(noted, str) and noted in networks:
        return noted
    return next((name for name in (ENSEMBLE, "a") if name in networks), next(iter(networks), None))
