"""Groups of processes: how they start, what is shown of them, and that none stays. The ranks here are small scripts."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dualseg import processes
from dualseg.errors import DualsegError
from dualseg.processes import PEER_LOST, as_rank, processes_of, python_of
from dualseg.signals import Stop
from dualseg.training import group
from dualseg.training.group import Ending, run_group

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
ONE = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let a piece of Python stand in for dualseg.train; it knows `rank`, its `words`, and `here`, a folder."""
    for name in ("MASTER_PORT", processes.GROUP, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)

    def write(body: str) -> None:
        script = tmp_path / "rank"
        script.write_text(f"""#!{PYTHON}
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from dualseg.processes import as_rank
from dualseg.signals import stoppable
words = sys.argv[sys.argv.index("dualseg.train") + 1 :]
rank, here = int(os.environ["RANK"]), Path({str(tmp_path)!r})
(here / f"{{rank}}.pid").write_text(str(os.getpid()))
def tell(*words): print(*words, file=sys.stderr, flush=True)
with as_rank(), stoppable():
{textwrap.indent(textwrap.dedent(body), "    ")}
""")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    yield write
    for path in tmp_path.glob("*.pid"):
        if running(int(path.read_text())):
            os.kill(int(path.read_text()), signal.SIGKILL)
            pytest.fail(f"{path.stem} was left running")


def running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_rank_gets_the_words_and_its_place(ranks, tmp_path, capfd) -> None:
    ranks("""
        names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        (here / f"{rank}.txt").write_text(" ".join(os.environ[name] for name in names) + " " + "|".join(words))
        print("out of", rank)
        (here / "start").write_text(" ".join(sys.argv[: -len(words)]))
    """)
    assert run_group(["seed=1", "name=a b"], 2) == Ending(0)
    first, second = ((tmp_path / f"{rank}.txt").read_text().split(" ", 6) for rank in range(2))
    assert first[:5] == ["0", "0", "0", "2", "127.0.0.1"]
    assert second[:3] == ["1", "1", "0"]
    assert first[3:] == second[3:]
    assert first[6] == "seed=1|name=a b"
    assert (tmp_path / "start").read_text() == " ".join(python_of("dualseg.train"))
    assert capfd.readouterr() == ("out of 0\n", "")


def test_torchruns_variables_do_not_reach_the_ranks(ranks, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    ranks("sys.exit('TORCHELASTIC_RUN_ID' in os.environ)")
    assert run_group([], 1) == Ending(0)


@pytest.mark.parametrize(
    ("first", "expected"), [("/usr/bin", "on the path"), ("", "working directory"), (None, "working directory")]
)
def test_modules_are_looked_for_where_the_command_itself_does(first, expected, tmp_path, monkeypatch) -> None:
    """A console script has its own folder in front, `python -m` the working directory; PYTHONPATH counts in both."""
    for folder, place in ((tmp_path, "working directory"), (tmp_path / "path", "on the path")):
        folder.mkdir(exist_ok=True)
        (folder / "toy.py").write_text(f"print({place!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "path", [str(tmp_path) if first is None else first, *sys.path])
    started = subprocess.run(python_of("toy"), capture_output=True, text=True, check=True)
    assert started.stdout.strip() == expected


@pytest.mark.parametrize("count", [1, 2])
def test_one_mistake_gives_one_message(ranks, count, tmp_path, capfd) -> None:
    ranks("""
        time.sleep(0.3 * (rank == 0))  # the other one is the first to end
        tell("error: seed: wrong.")
        sys.exit(2)
    """)
    assert run_group([], count) == Ending(2)
    assert capfd.readouterr() == ("", "error: seed: wrong.\n")
    log = tmp_path / "log"
    log.write_text("of an earlier launch\n")
    assert run_group([], count, log) == Ending(2, "seed: wrong.")
    assert log.read_text() == "error: seed: wrong.\n"
    assert capfd.readouterr() == ("", "")


def test_what_one_rank_alone_says_is_shown_and_the_others_are_ended(ranks, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(group, "GRACE", 0.3)
    ranks("""
        print("from", rank, flush=True)
        if rank == 0:
            time.sleep(60)
        tell("Reading: 50%\\rReading: 100%\\r        \\r\\nerror: loss not finite.")
        sys.exit(2)
    """)
    began = time.monotonic()
    assert run_group([], 2) == Ending(2)
    assert capfd.readouterr() == ("from 0\n", "error: loss not finite.\n")
    assert run_group([], 2, tmp_path / "log") == Ending(2, "loss not finite.")
    assert (tmp_path / "log").read_text() == "from 0\nerror: loss not finite.\n"
    assert time.monotonic() - began < 20


def test_a_rank_that_only_lost_another_is_not_the_cause(ranks, capfd) -> None:
    ranks(f"""
        if rank == 0:
            sys.exit({PEER_LOST})
        time.sleep(0.3)
        tell("error: the cause.")
        sys.exit(2)
    """)
    assert run_group([], 2) == Ending(2)
    assert capfd.readouterr().err == "error: the cause.\n"


def test_ranks_that_all_lost_one_another_still_say_something(ranks, capfd) -> None:
    ranks(f"""
        tell(f"gloo says {{rank}}") if rank else None
        sys.exit({PEER_LOST})
    """)
    ending = run_group([], 2)
    assert ending.code == 1
    assert "lost the connection" in ending.reason
    assert capfd.readouterr().err == f"gloo says 1\nerror: {ending.reason}\n"


def test_a_killed_rank_ends_the_group_and_is_named(ranks, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(group, "GRACE", 0.3)
    ranks("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)")
    ending = run_group([], 3)
    assert ending.code == 137
    assert ending.reason.startswith("rank 1 of 3 ") and "SIGKILL" in ending.reason
    assert capfd.readouterr().err == f"error: {ending.reason}\n"
    ranks("os.kill(os.getpid(), signal.SIGSEGV)")
    ending = run_group([], 1, tmp_path / "log")
    assert ending.code == 139
    assert ending.reason.startswith("the process ") and "SIGSEGV" in ending.reason
    assert (tmp_path / "log").read_text() == f"error: {ending.reason}\n"


def test_what_a_rank_has_started_ends_with_it(ranks, tmp_path) -> None:
    ranks("""
        import subprocess
        worker = subprocess.Popen(["sleep", "60"])
        (here / "worker.pid").write_text(str(worker.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert run_group([], 1).code == 137
    wait_until(lambda: not running(int((tmp_path / "worker.pid").read_text())))


def test_a_traceback_is_shown_once(ranks, capfd) -> None:
    ranks("raise KeyError('oh')")
    assert run_group([], 2).code == 1
    assert capfd.readouterr().err.count("KeyError: 'oh'") == 1


LAUNCH = (
    "import sys; from dualseg.training.group import run_group; sys.executable = {!r}; sys.exit(run_group([], 2).code)"
)


def launch() -> subprocess.Popen[str]:
    """`run_group` in a process of its own, to be sent signals."""
    return subprocess.Popen(
        [PYTHON, "-c", LAUNCH.format(sys.executable)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


COUNTS = """
    heard = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: heard.append(number))
    (here / f"ready{rank}").touch()
    while len(heard) < needed:
        time.sleep(0.01)
    time.sleep(0.2)
    if rank == 0:
        tell("stopped after", *heard)
    sys.exit(128 + heard[0])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_passed_on_once(ranks, number, code, tmp_path) -> None:
    ranks("needed = 1\n" + textwrap.dedent(COUNTS))
    with launch() as process:
        wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", f"stopped after {number:d}\n")


def test_the_second_signal_stops_at_once(ranks, tmp_path) -> None:
    ranks("needed = 9\n" + textwrap.dedent(COUNTS))
    with launch() as process:
        wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (130, "", 1)
    assert err.startswith("error: stopped at once. ") and "same command" in err


@pytest.mark.parametrize("count", [1, 2])
def test_several_ranks_that_do_not_answer_are_ended(ranks, count, tmp_path, monkeypatch) -> None:
    """One alone may finish its iteration, however long that takes."""
    monkeypatch.setattr(group, "PATIENCE", 0.2)
    monkeypatch.setattr(group, "MARGIN", 0.2)
    ranks("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (here / f"ready{rank}").touch()
        time.sleep(1.5 if os.environ["WORLD_SIZE"] == "1" else 60)
        sys.exit(143)
    """)
    stop = Stop()

    def ask() -> None:
        wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(count)))
        stop.note(signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    ending = run_group([], count, stop=stop)
    asking.join()
    assert (ending.code, ending.signal) == (143, signal.SIGTERM)
    assert ("last checkpoint is kept" in ending.reason) == (count == 2)


def test_ranks_die_with_the_process_that_started_them(ranks, tmp_path) -> None:
    ranks("""
        (here / f"ready{rank}").touch()
        time.sleep(60)
    """)
    with launch() as process:
        wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
        process.kill()
    wait_until(lambda: not any(running(int((tmp_path / f"{rank}.pid").read_text())) for rank in range(2)))


def test_signals_have_their_former_handlers_afterwards(ranks) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ranks("sys.exit(3)")
    assert run_group([], 1) == Ending(3)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# the port


def test_a_given_port_is_taken_and_a_taken_port_is_refused(ranks, tmp_path, monkeypatch) -> None:
    ranks("(here / 'port').write_text(os.environ['MASTER_PORT'])")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", taken)
        with pytest.raises(DualsegError, match=f"MASTER_PORT={taken}: .*another program uses it"):
            run_group([], 2)
        assert not (tmp_path / "port").exists(), "before anything starts"
        assert run_group([], 2, log=tmp_path / "log") == Ending(0), "a run of a sweep takes a free one"
        assert (tmp_path / "port").read_text() != taken
    monkeypatch.setenv("MASTER_PORT", taken)
    assert run_group([], 1) == Ending(0)
    assert (tmp_path / "port").read_text() == taken
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(DualsegError, match="MASTER_PORT=http: no port"):
        run_group([], 2)


def test_two_groups_at_a_time_have_a_port_each(ranks, tmp_path) -> None:
    """As the runs of a sweep that joblib starts: each waits here for the other's ranks."""
    ranks("""
        (here / f"{words[0]}.{rank}.port").write_text(os.environ["MASTER_PORT"])
        while len([*here.glob("*.port")]) < 4:
            time.sleep(0.02)
    """)
    stop, ended = Stop(), {}

    def group_of(name: str) -> None:
        ended[name] = run_group([name], 2, tmp_path / f"{name}.log", stop)

    threads = [threading.Thread(target=group_of, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert ended == {"first": Ending(0), "second": Ending(0)}
    first, second = ({(tmp_path / f"{name}.{rank}.port").read_text() for rank in (0, 1)} for name in ended)
    assert len(first) == len(second) == 1 and first != second


def test_rank_0_can_listen_at_the_port_and_nobody_else_is_given_it(ranks, tmp_path) -> None:
    ranks("""
        import socket
        port = int(os.environ["MASTER_PORT"])
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("", port))
            ours.listen()
        with socket.socket() as other:
            try:
                other.bind(("", port))
            except OSError:
                sys.exit(0)
        sys.exit(3)
    """)
    assert run_group([], 1) == Ending(0)


# how many


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 1), ({"devices": 3}, 3), ({"devices": "auto"}, 1), ({"devices": -1}, 1), ({"devices": [0, 1]}, 1)],
)
def test_processes_on_a_cpu(settings, expected) -> None:
    assert processes_of({**ONE, **settings}) == expected


def test_several_processes_on_a_cpu_are_asked_for_by_name(monkeypatch) -> None:
    """A driver that does not work would otherwise turn a run of hours into one of weeks, without a word."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(DualsegError, match=r"trainer\.devices=2: .*no GPU .*trainer\.accelerator=cpu"):
        processes_of({**ONE, "accelerator": "auto", "devices": 2})


@pytest.mark.parametrize(("devices", "expected"), [(1, 1), (2, 2), (4, 4), (-1, 4), ("auto", 4), ([3], 1), ([0, 2], 2)])
def test_processes_on_gpus(devices, expected, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert processes_of({**ONE, "accelerator": "auto", "devices": devices}) == expected


@pytest.mark.parametrize("devices", [5, [0, 4]])
def test_more_gpus_than_there_are(devices, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(DualsegError, match=r"trainer\.devices=.*this machine has 4 GPUs"):
        processes_of({**ONE, "accelerator": "gpu", "devices": devices})


def test_several_machines_are_slurms() -> None:
    with pytest.raises(DualsegError, match=r"trainer\.num_nodes=2: .*srun"):
        processes_of({**ONE, "num_nodes": 2})


# which one is this


def test_a_process_that_is_alone(monkeypatch) -> None:
    monkeypatch.delenv(processes.GROUP, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script has it too, and a rank of its own
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert (processes.in_group(), processes.is_slurm_task(), processes.rank(), processes.world_size()) == (
        *(False, False),
        *(0, 1),
    )
    with as_rank():
        pass


def test_a_task_of_srun(monkeypatch) -> None:
    monkeypatch.delenv(processes.GROUP, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert (processes.is_slurm_task(), processes.rank(), processes.world_size()) == (True, 3, 4)
    monkeypatch.setenv(processes.GROUP, "2")  # of a task that has started a group
    monkeypatch.setenv("RANK", "1")
    assert (processes.is_slurm_task(), processes.rank(), processes.world_size()) == (False, 1, 2)


def test_no_torch_at_import() -> None:
    code = "import sys, dualseg.processes, dualseg.runs.lock; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([PYTHON, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    )
