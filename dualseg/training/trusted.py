"""Objects from what a run folder records, made without running code that nobody has trusted.

Hydra's `instantiate` calls whatever a `_target_` names; in a folder from somebody else that may be os.system. Here a
target is judged before anything is called, and by the object that it leads to, for many a name leads elsewhere than it
looks (torch.nn.init.torch.load). No module outside `PACKAGES` is imported before it is trusted, since importing runs
its code. No interpolation (${...}) is resolved. No torch here, unless a network is built.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.files import writing_nowhere_but
from dualseg.names import check_network_names
from dualseg.runs.folder import RunFolder

PACKAGES = ("dualseg", "monai.networks", "torch.nn")
HYDRAS = ("_args_", "_partial_", "_recursive_", "_convert_")  # keys beside `_target_` that are no arguments
# Parameters of MONAI's networks by which they download weights or open a file. `pretrained` is often true by default.
LOADS = re.compile(r"pretrained|url|repo|file|checkpoint|weights|path")
WORD = re.compile(r"[\w .+-]{0,100}")  # a text that a network takes: the name of a layer, of a mode
SPARE = 256 * 2**20  # bytes of parameters and buffers beyond four times the checkpoint, before a network is refused
FIX = "restore the file that the run wrote"


class Trust:
    """What may be built from a run folder: the networks and datasets of `PACKAGES`, and what the user names.

    Args:
        names: values of trust=..., each as a `_target_` has it.
        writable: where a dataset may write what is missing of it, such as its split file.

    Raises:
        DualsegError: one of the names is no dotted name.
    """

    def __init__(self, names: Iterable[str] = (), writable: Iterable[Path] = ()) -> None:
        self.names = frozenset(names)
        self.writable = tuple(writable)
        for name in self.names:
            if not _is_dotted(name):
                raise DualsegError(f"trust={name}: give the name from the message, such as trust=my_networks.MyNet.")

    def check(self, config: Mapping[str, Any], file: Path) -> None:
        """Look, before anything is imported, at the targets of a configuration; they are judged when they are built.

        Args:
            config: of a run folder.
            file: which it is of, for messages.

        Raises:
            DualsegError: naming all that must be trusted; as `check_form`.
        """
        check_form(config, file)
        nodes = [config["data"]["source"], *config["networks"].values()]
        foreign = [target for target in targets(nodes) if target not in self.names and not _is_ours(target)]
        if foreign:
            raise _untrusted(str(file), foreign)

    def source_class(self, run: RunFolder) -> type[VolumeSource]:
        """The class of a run's dataset.

        Raises:
            DualsegError: it is not trusted, cannot be imported, or is no VolumeSource.
        """
        config = run.config()
        check_form(config, run.config_file)
        target = config["data"]["source"]["_target_"]
        where = f"{run.config_file}: data.source"
        found = self._found(target, where, VolumeSource)
        if not (isinstance(found, type) and issubclass(found, VolumeSource)):
            raise DualsegError(f"{where}: {target} is no VolumeSource, so it cannot prepare a scan.")
        return found

    def source(self, recorded: Any, where: str) -> VolumeSource:
        """A dataset of its recorded `data.source`.

        Args:
            recorded: a mapping with a `_target_`.
            where: file and key, for messages.

        Raises:
            DualsegError: it is not trusted, cannot be built, or would write elsewhere than at `writable`.
        """
        with writing_nowhere_but(self.writable):
            source = self._called(recorded, where, VolumeSource)
        if not isinstance(source, VolumeSource):
            raise DualsegError(f"{where}: {recorded['_target_']} gives no VolumeSource.")
        return source

    def network(self, recorded: Any, where: str, most: int, **shape: int) -> Any:
        """A network of its recorded `networks.NAME`, with weights of chance.

        Args:
            recorded: a mapping with a `_target_`.
            where: file and key, for messages.
            most: bytes of its checkpoint. A network of dualseg, MONAI or torch with far larger parameters and
                buffers is no network of this checkpoint; it is refused while it is built.
            shape: further arguments.

        Raises:
            DualsegError: it is not trusted, cannot be built, or is too large.
        """
        from torch import nn

        _check_node(recorded, where)
        own = recorded["_target_"] in self.names  # which may build more than it keeps
        with nullcontext() if own else _tensors_of_at_most(4 * most + SPARE, where):
            network = self._called(recorded, where, nn.Module, shape)
        if not isinstance(network, nn.Module):
            raise DualsegError(f"{where}: {recorded['_target_']} gives no torch.nn.Module.")
        return network

    def _built(self, value: Any, where: str, base: type) -> Any:
        """`value` with every mapping that has a `_target_` replaced by what that makes."""
        if isinstance(value, Mapping):
            if "_target_" in value:
                return self._called(value, where, base)
            return {key: self._built(item, f"{where}.{key}", base) for key, item in value.items()}
        if isinstance(value, list):
            return [self._built(item, f"{where}[{index}]", base) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            raise DualsegError(f"{where}={value[:100]!r}: a run folder records values, no interpolations; {FIX}.")
        if not isinstance(value, str | int | float | None):
            raise DualsegError(f"{where}: is a {type(value).__name__}; {FIX}.")
        return value

    def _called(self, node: Mapping[str, Any], where: str, base: type, given: Mapping[str, Any] | None = None) -> Any:
        _check_node(node, where)
        target = node["_target_"]
        found = self._found(target, where, base)
        arguments = {str(key): item for key, item in node.items() if key != "_target_"}
        hydras = {key: arguments.pop(key) for key in HYDRAS if key in arguments}
        if target not in self.names:
            if special := hydras.keys() - {"_convert_"}:
                raise _untrusted(where, [target], f" with {', '.join(sorted(special))}")
            if opened := _opened(found, arguments, base):
                raise _untrusted(where, [target], f" with {opened}")
        if hydras.get("_recursive_", True):
            arguments = {key: self._built(item, f"{where}.{key}", base) for key, item in arguments.items()}
        positional = self._built(hydras.get("_args_", []), where, base)
        try:
            call = partial(found, *positional, **{**arguments, **(given or {})})
            return call if hydras.get("_partial_") else call()
        except DualsegError:
            raise
        except Exception as error:  # whatever a class makes of arguments that it does not expect
            reason = " ".join(str(error).split())
            raise DualsegError(f"{where}: {target} cannot be built ({type(error).__name__}: {reason}).") from error

    def _found(self, target: str, where: str, base: type) -> Any:
        """What a target names, judged. Raises: DualsegError where it is not trusted, or not there."""
        trusted = target in self.names
        if not trusted and not _is_ours(target):
            raise _untrusted(where, [target])
        try:
            found = _located(target, anywhere=trusted)
        except LookupError:
            raise _untrusted(where, [target]) from None
        except Exception as error:  # whatever importing somebody's module raises
            reason = " ".join(str(error).split())
            fix = "put the folder of its module on PYTHONPATH" if trusted else "the run may be of another version"
            raise DualsegError(f"{where}: {target} cannot be imported ({reason}); {fix}.") from error
        if not trusted and not _is_ours_of(found, base) and not _is_monai_network(found, base):
            raise _untrusted(where, [target])
        return found


def check_form(config: Mapping[str, Any], file: Path) -> None:
    """A configuration has networks of plain names and a source of volumes, each with a `_target_`.

    Args:
        config: of a run folder.
        file: which it is of, for messages.

    Raises:
        DualsegError: it has not.
    """
    networks, data = config.get("networks"), config.get("data")
    check_network_names(f"{file}: networks", networks)
    assert isinstance(networks, Mapping)
    for name, network in networks.items():
        _check_node(network, f"{file}: networks.{name}")
    _check_node(data.get("source") if isinstance(data, Mapping) else None, f"{file}: data.source")


def _check_node(node: Any, where: str) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise DualsegError(f"{where}: is no mapping with a _target_; {FIX}.")
    if not _is_dotted(node["_target_"]):
        raise DualsegError(f"{where}: _target_ {str(node['_target_'])[:100]!r} is no name of a class; {FIX}.")


def targets(nodes: Iterable[Any]) -> Iterator[str]:
    """Every `_target_` in `nodes`, each once, in their order; what is no dotted name is left to be refused later."""
    found: dict[str, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Mapping):
            if _is_dotted(node.get("_target_")):
                found[node["_target_"]] = None
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    yield from found


def to_trust(config: Mapping[str, Any]) -> list[str]:
    """The trust=... that an evaluation of a run with this configuration needs."""
    nodes = (config["data"]["source"], *config["networks"].values())
    return [f"trust={target}" for target in targets(nodes)]  # of ours, too: with some arguments they need it


def _is_dotted(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= 200 and all(part.isidentifier() for part in name.split("."))


def _is_ours(target: str) -> bool:
    """By its name it lies in one of `PACKAGES`, in no private part of it."""
    inside = any(target.startswith(f"{package}.") for package in PACKAGES)
    return inside and not any(part.startswith("_") for part in target.split("."))


def _located(target: str, anywhere: bool) -> Any:
    """What a dotted name leads to.

    Raises:
        LookupError: unless `anywhere`, through something else than a module under its own name.
        Exception: it is not there, or a module cannot be imported.
    """
    path, *parts = target.split(".")
    found: Any = import_module(path)
    for part in parts:
        if not anywhere and not isinstance(found, ModuleType):
            raise LookupError(path)
        path = f"{path}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            found = import_module(path)
        if not anywhere and isinstance(found, ModuleType) and found.__name__ != path:
            raise LookupError(path)  # a module that another one has imported
    return found


def _is_ours_of(found: Any, base: type) -> bool:
    """It is a subclass of `base` that one of `PACKAGES` defines, by its own name and not by where it was found."""
    if not isinstance(found, type) or not issubclass(found, base):
        return False
    place: Any = sys.modules.get(found.__module__)
    for part in found.__qualname__.split("."):
        place = getattr(place, part, None)
    return place is found and any(f"{found.__module__}.".startswith(f"{package}.") for package in PACKAGES)


def _is_monai_network(found: Any, base: type) -> bool:
    """It is dualseg's function that builds a network of MONAI by its name; the name is judged with the arguments."""
    if base is VolumeSource:
        return False
    from dualseg.networks import monai_network

    return found is monai_network


def _opened(found: Any, arguments: Mapping[str, Any], base: type) -> str | None:
    """The argument with which a network of `PACKAGES` would open a file, download one, or what is no plain value."""
    if base is VolumeSource:  # its paths are what it is made of
        return None
    taken = dict(arguments)
    if _is_monai_network(found, base):
        import monai.networks.nets

        name = taken.pop("network", None)
        found = getattr(monai.networks.nets, name, None) if isinstance(name, str) else None
        if not _is_ours_of(found, base):
            return f"network={name!r}"[:100]
    for key, parameter in inspect.signature(found).parameters.items():
        if key not in taken and _loads(key, parameter.default):
            return f"its default {key}={parameter.default!r}"
    waiting = list(taken.items())
    while waiting:
        key, value = waiting.pop()
        if _loads(key, value) or (isinstance(value, str) and not WORD.fullmatch(value)):
            return f"{key}={value!r}"[:100]
        if isinstance(value, Mapping) and "_target_" not in value:  # such a one is judged by itself
            waiting += [(str(inner), item) for inner, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
    return None


def _loads(key: str, value: Any) -> bool:
    """With this argument a network would load weights. `use_checkpoint=true` and `drop_path=0.1` do not."""
    if not LOADS.search(key) or value is inspect.Parameter.empty:
        return False
    return bool(value) if "pretrained" in key else isinstance(value, str) and value != ""


@contextmanager
def _tensors_of_at_most(most: int, where: str) -> Iterator[None]:
    """Stop the building of a network whose parameters and buffers take more than `most` bytes.

    Raises:
        DualsegError: they do.
    """
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )
    from torch.nn.parameter import is_lazy

    taken = 0

    def count(module: Any, name: str, tensor: Any) -> None:
        nonlocal taken
        if tensor is not None and not is_lazy(tensor):
            taken += tensor.numel() * tensor.element_size()
        if taken > most:
            raise DualsegError(f"{where}: has parameters of more than {most / 1e6:.0f} MB, far above its checkpoint's.")

    with (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ):
        yield


def _untrusted(where: str, foreign: list[str], what: str = "") -> DualsegError:
    arguments = " ".join(f"trust={target}" for target in foreign)
    return DualsegError(
        f"{where}: is built by {', '.join(foreign)}{what}, which may run any code; a run folder alone does not make "
        f"dualseg call it. If it is yours, or you know what it does, add {arguments} to the command."
    )
