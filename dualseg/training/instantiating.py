"""Errors of what Hydra instantiates, in terms of the configuration. No torch here."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dualseg.command.habits import advice_on
from dualseg.errors import DualsegError


@contextmanager
def naming_keys_of(group: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Name the key of `group` that what is built from its `settings` does not take: Hydra lets +group.key=... pass.

    Raises:
        DualsegError: in place of the TypeError about such an argument, Python's own or wrapped by Hydra.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except (TypeError, InstantiationException) as error:
        found = re.search(r"(?:unexpected keyword argument|multiple values for keyword argument) '(\w+)'", str(error))
        if found is None or found[1] not in settings:
            raise
        key = f"{group}.{found[1]}"
        raise DualsegError(f"{key}: no such configuration key; leave it out.{advice_on(key)}") from error
