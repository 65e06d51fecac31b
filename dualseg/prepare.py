"""`dualseg-prepare data=la|pancreas|brats raw=DIR out=DIR`: from what one downloads to what training reads."""

from typing import TYPE_CHECKING

from dualseg.cli import run_with_words
from dualseg.errors import DualsegError
from dualseg.preparation.words import KEYS
from dualseg.signals import resumable
from dualseg.words import help_of

if TYPE_CHECKING:
    from dualseg.preparation.options import Options
    from dualseg.preparation.work import Outcome

USAGE = "dualseg-prepare data=la|pancreas|brats raw=DIR out=DIR [key=value ...]"
NOTE = "A case that fails does not stop the others; the exit code is then 2, and the same command goes on where it was."

OUT_OF_MEMORY = "Lower workers=..., and give the same command again; finished cases are kept."


def prepare(options: "Options") -> "Outcome":
    """Prepare a dataset, write and print the summary.

    Raises:
        DualsegError: whatever the user can mend, before the first case; or, after all others, cases have failed.
    """
    from dualseg.data.dicom import left_out_line
    from dualseg.preparation.summary import write_summary
    from dualseg.preparation.work import prepare_dataset

    preparation, out = options.preparation, options.out
    with resumable("What is prepared is kept: give the same command again to go on."):
        outcome = prepare_dataset(preparation, options.raw, out, options.workers)
    if outcome.finished:
        print(write_summary(out / "summary.csv", preparation, out, outcome.finished))
    kept = f", {outcome.kept} of them before" if outcome.kept else ""
    print(f"Prepared: {len(outcome.finished)} cases in {out}{kept}; crop={preparation.crop}")
    if outcome.unlisted:
        print(f"Left out: {outcome.unlisted} cases that are in no list of data={preparation.source.name}")
    if outcome.left_out:
        print(left_out_line(outcome.left_out))
    if outcome.not_in_download:
        names = ", ".join(outcome.not_in_download)
        print(f"Not there: {names}, which today's public download lacks; training from {out} leaves them out")
    _complain(outcome, options)
    return outcome


def _complain(outcome: "Outcome", options: "Options") -> None:
    for problem in outcome.problems:
        print(problem)
    complaints = []
    if outcome.problems:
        complaints.append(f"{len(outcome.problems)} files cannot be read, see above.")
    if outcome.failed:
        complaints.append(f"{_some(list(outcome.failed))} failed, see above.")
    if outcome.missing:
        complaints.append(f"{_some(outcome.missing)} of the lists are not below raw={options.raw}.")
    if complaints:
        complaints.append("All others are prepared; mend these, and give the same command again.")
        raise DualsegError(" ".join(complaints))


def _some(cases: list[str]) -> str:
    names = ", ".join(cases[:5]) + (", ..." if len(cases) > 5 else "")
    return f"{len(cases)} case{'s' * (len(cases) > 1)} ({names})"


def main() -> None:
    """Console script."""

    def command(words: list[str]) -> None:
        from dualseg.preparation.options import parse_words

        prepare(parse_words(words))

    run_with_words(command, help_of(USAGE, KEYS, NOTE), OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
