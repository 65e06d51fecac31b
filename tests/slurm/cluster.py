"""A Slurm of one machine in a folder of its own, as root: munged, slurmctld and slurmd, ended whatever happens."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
CPUS = 6  # more than the machine may have: config_overrides believes it
# preemption as clusters have it: the job is told (USR2 to submitit's jobs), has GraceTime to write a checkpoint, and
# Slurm requeues it if it has not done so itself
CONFIGURATION = """
ClusterName=dualseg
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=sched_interval=5,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=localhost PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """What this machine lacks, and how to fix it; None: nothing."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get update && apt-get install -y slurm-wlm munge"
    if os.geteuid() != 0:
        return "run it as root: slurmd starts jobs in the name of others"
    return None


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the three daemons with everything of theirs in `folder`, and give the environment that finds them."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    ports = [_free_port(), _free_port()]
    conf.write_text(CONFIGURATION.format(folder=folder, cpus=CPUS, ctld_port=ports[0], d_port=ports[1]))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    munge = [f"--{what}={folder}/munge.{name}" for what, name in (("key-file", "key"), ("socket", "socket"))]
    munge += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    daemons = (["munged", "--foreground", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"])
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "daemons.log").open("wb") as log:
            for command in daemons:
                # in a session of its own: Ctrl-C must reach the daemons after the jobs that they run
                started.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
                if command[0] == "munged":
                    wait("munged", (folder / "munge.socket").exists, 30)
        wait("an idle node", lambda: _says(["sinfo", "--noheader", "--format=%T"], environment) == "idle", 60)
        yield environment
    finally:
        user = f"--user={os.getuid()}"
        for command in (["scancel", "--full", "--signal=KILL", user], ["scancel", user]):
            subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
        with suppress(TimeoutError):
            wait("the jobs to end", lambda: not _says(["squeue", "--noheader", user], environment), 30)
        for daemon in reversed(started):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait(what: str, until: Callable[[], object], seconds: float) -> None:
    """Raises: TimeoutError where `until` is not true in time."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.5)


def _says(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
