"""How commands start: Hydra where there is configuration, key=value arguments of their own elsewhere. No torch here."""

import os
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from dualseg import __version__
from dualseg.command.failures import MORE_MEMORY, guarded
from dualseg.command.grammar import Options, read_arguments, split_arguments
from dualseg.command.help import help_of
from dualseg.command.overrides import readable
from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError, nearest
from dualseg.processes import program

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HELP = ("-h", "--help")


def run_with_hydra(
    task: Callable[..., Any],
    config_name: str,
    in_sweep: Callable[[Any], Any] | None = None,
    help_text: str | None = None,
    out_of_memory: str = MORE_MEMORY,
    options: "type[DataclassInstance] | None" = None,
) -> None:
    """Compose `config_name` with the command line's overrides and call `task` with it.

    Args:
        task: takes the composed configuration, and the `options`; what a user can fix may leave it.
        config_name: the root of the configuration tree.
        in_sweep: takes the configuration of each run of `-m`, and gives back what the sweeper wants to know; None:
            `-m` is refused.
        help_text: what `--help` prints, where Hydra's own would be that of another command.
        out_of_memory: what to do when there is too little memory.
        options: keys of the command's own, beside those of the configuration: see `dualseg.command.grammar`.
    """
    _answer_version()
    if help_text is not None and {*HELP} & {*sys.argv[1:]}:
        print(help_text)
        return

    def compose() -> None:
        import hydra
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        if in_sweep is None and {"-m", "--multirun"} & {*sys.argv[1:]}:
            raise DualsegError("-m: this command takes one configuration at a time; leave it out.")
        more = []
        if options is not None:
            own, sys.argv[1:] = split_arguments(options, sys.argv[1:])
            more.append(read_arguments(options, own, " ".join(program())))
        sys.argv[1:] = _flags_first(sys.argv[1:])
        sys.argv[1:] = readable(sys.argv[1:], multirun=bool({"-m", "--multirun"} & {*sys.argv[1:]}))
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to `guarded`

        def job(config: Any) -> Any:
            if in_sweep is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
                return in_sweep(config)
            # guarded inside as well: Hydra prints a line of its own about what leaves the task
            return guarded(lambda: task(config, *more), out_of_memory)

        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()

    guarded(compose, out_of_memory)


def _flags_first(arguments: list[str]) -> list[str]:
    """The arguments with -m and --config-dir in front: argparse refuses what follows a flag between overrides."""
    flags: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--config-dir", "-cd"):
            flags += [argument, *islice(rest, 1)]
        else:
            is_flag = argument in ("-m", "--multirun") or argument.startswith("--config-dir=")
            (flags if is_flag else others).append(argument)
    return [*flags, *others]


def run_with_arguments(
    task: Callable[[Options], Any],
    options: type[Options],
    usage: str,
    about: str = "",
    note: str = "",
    out_of_memory: str = MORE_MEMORY,
) -> None:
    """Call `task` with the options that the command line gives, guarded; with --help, or without an argument, help.

    Args:
        task: the command.
        options: see `dualseg.command.grammar`.
        usage: begins with the name of the command.
        about, note: see `dualseg.command.help`.
        out_of_memory: what to do when there is too little memory.
    """
    _answer_version()
    arguments = sys.argv[1:]
    if not arguments or {*HELP} & {*arguments}:
        print(help_of(usage, options, about, note))
        raise SystemExit(0 if arguments else 2)
    guarded(lambda: task(read_arguments(options, arguments, " ".join(program()))), out_of_memory)


class Subcommand(NamedTuple):
    """One of a command that does several things.

    Attributes:
        summary: in one line.
        main: takes its arguments from `sys.argv`, of which the first names the command and this one.
    """

    summary: str
    main: Callable[[], None]


def run_subcommand(about: str, commands: Mapping[str, Subcommand]) -> None:
    """Call the subcommand that the first argument names; with --help, or without an argument, list them.

    Args:
        about: the first line of the list.
        commands: by name.
    """
    _answer_version()
    name = " ".join(program())
    chosen, *rest = sys.argv[1:] or [""]
    if chosen in ("", *HELP):
        column = max(map(len, commands)) + 4
        print(about, "", *(f"  {one}".ljust(column) + what.summary for one, what in commands.items()), "", sep="\n")
        print(f"{name} COMMAND --help tells more of each.")
        raise SystemExit(0 if chosen else 2)
    if chosen not in commands:
        guarded(lambda: _refuse(chosen, name, list(commands)))
    sys.argv = [f"{name} {chosen}", *rest]
    commands[chosen].main()


def _answer_version() -> None:
    """Of every command; Hydra would tell its own."""
    if sys.argv[1:2] == ["--version"]:
        print(f"dualseg {__version__}")
        raise SystemExit(0)


def _refuse(chosen: str, name: str, commands: list[str]) -> None:
    fix = nearest(chosen, commands) or f" There are {', '.join(commands)}."
    raise DualsegError(f"{chosen}: no such command of {name}.{fix}")
