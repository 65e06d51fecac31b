"""What turns a scan into what a run's networks read, from its run folder alone. No torch here."""

from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.runs.folder import RunFolder
from dualseg.runs.settings import check_for_scans
from dualseg.runs.trusted import Trust


def scan_source(run: RunFolder, trust: Trust) -> VolumeSource:
    """The dataset's class with what the run has recorded of it; the dataset itself need not be there.

    Raises:
        DualsegError: the class is not trusted or cannot be imported; the record, or what else prediction reads, is
            damaged or not enough.
    """
    check_for_scans(run.config(), run.config_file)
    kind = trust.source_class(run)
    # a run that is older than the record may do with the attributes of the class
    record = read_json(run.preprocessing_file) if run.preprocessing_file.exists() else {}
    if not isinstance(record, dict):
        raise DualsegError(f"{run.preprocessing_file}: is damaged; restore the file that the run wrote.")
    try:
        return kind.for_scans(record)
    except (DualsegError, TypeError) as error:  # the latter where the class lacks a method
        raise DualsegError(f"{run.preprocessing_file}: {error}") from error
