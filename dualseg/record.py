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
    averages = averages_of(noted, where)
    ensemble = noted.get("ensemble", list(networks))
    record = noted.get("record", ENSEMBLE if len(networks) > 1 else next(iter(networks)))
    known = {*networks, *averages}
    good = (
        set(averages.values()) <= set(networks)
        and not {*networks, ENSEMBLE} & averages.keys()
        and isinstance(ensemble, list)
        and all(isinstance(name, str) for name in (record, *ensemble))
        and ensemble != []
        and set(ensemble) <= known
        and len(set(ensemble)) == len(ensemble)
        and (record in known or (record == ENSEMBLE and len(ensemble) > 1))
    )
    if not good:
        raise DualsegError(
            f"{where}: says of its networks what cannot be (averages {averages}, ensemble {ensemble}, record {record}; "
            f"networks {sorted(networks)})."
        )
    return Roles(averages, tuple(ensemble), record)


def averages_of(noted: Mapping[str, Any], where: str) -> dict[str, str]:
    """Averaged network -> the network that it follows, as a checkpoint or metrics.json notes it under `averages`.

    Raises:
        DualsegError: it is no mapping of names to names.
    """
    averages = noted.get("averages", {})
    if not isinstance(averages, dict) or not all(isinstance(name, str) for name in averages.values()):
        raise DualsegError(f"{where}: averages: is no mapping of names to names of networks.")
    if averages:
        check_network_names(f"{where}: averages", averages)
    return averages


def record_of(noted: Any, networks: Collection[str]) -> str | None:
    """The one of `networks` whose results stand for a run; None where there are none.

    Args:
        noted: `record` of metrics.json. Older runs have none: then the ensemble, else network a, else the first.
        networks: with results.
    """
    if isinstance(noted, str) and noted in networks:
        return noted
    return next((name for name in (ENSEMBLE, "a") if name in networks), next(iter(networks), None))
