"""What turns a scan into what a run's networks read, from its run folder alone. No torch here."""

from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.runs.folder import RunFolder


def scan_source(run: RunFolder) -> VolumeSource:
    """The dataset's class with what the run has recorded of it; the dataset itself need not be there.

    Raises:
        DualsegError: the class cannot be imported, or the record is damaged or not enough.
    """
    from hydra.utils import get_object

    target = run.config()["data"]["source"]["_target_"]
    try:
        kind = get_object(target)
    except Exception as error:  # whatever importing somebody's module raises
        reason = " ".join(str(error).split())
        mend = "put the folder of its module on PYTHONPATH"
        raise DualsegError(f"{run.config_file}: {target} cannot be imported ({reason}); {mend}.") from error
    if not (isinstance(kind, type) and issubclass(kind, VolumeSource)):
        raise DualsegError(f"{run.config_file}: {target} is no VolumeSource, so it cannot prepare a scan.")
    # a run that is older than the record may do with the attributes of the class
    record = read_json(run.preprocessing_file) if run.preprocessing_file.exists() else {}
    if not isinstance(record, dict):
        raise DualsegError(f"{run.preprocessing_file}: is damaged; restore the file that the run wrote.")
    source = kind.for_scans(record)
    names, channels = source.class_names, source.channels
    whole = isinstance(names, tuple) and len(names) > 1 and all(isinstance(name, str) for name in names)
    if not whole or type(channels) is not int or channels < 1:
        raise DualsegError(f"{run.preprocessing_file}: class_names or channels is damaged; restore the file.")
    return source
