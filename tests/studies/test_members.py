"""Which run folders are rows of a study, and what loose ones are called."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dualseg.errors import DualsegError
from dualseg.studies.index import Job, Sweep
from dualseg.studies.loose import loose_study, study_of_values
from dualseg.studies.members import members_of
from dualseg.studies.study import Study
from dualseg.studies.timing import status

STUDY = Study("x", {"cpu": "la_cpu", "full": "la_paper"}, (0, 1), {"one": {}, "two": {}}, {"pair": ("one", "two")})
DICE = {"a": [0.8]}


def write_sweep(runs: Path, name: str, jobs: list[tuple[str | None, int, str]]) -> Path:
    sweep = Sweep(runs / "sweeps" / name)
    sweep.write([Job(run, (), run, "kind", 3, seed, variant) for variant, seed, run in jobs], "x", name[2:])
    return sweep.file


def test_members_are_the_jobs_of_every_scale_and_the_ensembles(tmp_path: Path) -> None:
    write_sweep(tmp_path, "x-cpu", [("one", 0, "r0"), ("two", 3, "r1"), ("gone", 0, "r2"), (None, 0, "r3")])
    write_sweep(tmp_path, "y-full", [("one", 0, "other")])
    found = [(m.variant, m.scale, m.seed, m.folder.path.name) for m in members_of(STUDY, tmp_path)]
    assert found == [
        ("one", "cpu", 0, "r0"),
        ("two", "cpu", 3, "r1"),
        ("pair", "cpu", 0, "x-cpu-pair-seed0"),
        ("pair", "cpu", 3, "x-cpu-pair-seed3"),
    ]
    assert members_of(STUDY, tmp_path / "absent") == []


@pytest.mark.parametrize("text", ['{"jobs": [{"variant": "one"}]}', '{"jobs": 3}', "[]", '{"jobs": [', "{}"])
def test_a_damaged_sweep_is_named(tmp_path: Path, text: str) -> None:
    path = write_sweep(tmp_path, "x-cpu", [])
    path.write_text(text)
    with pytest.raises(DualsegError, match=r"sweep\.json"):
        members_of(STUDY, tmp_path)


def test_no_sweep_leaves_the_folder_of_runs(tmp_path: Path) -> None:
    """Its files may come from somebody else."""
    write_sweep(tmp_path, "x-cpu", [("one", 0, "../../r0")])
    with pytest.raises(DualsegError, match=r"sweep\.json: damaged .*r0"):
        members_of(STUDY, tmp_path)
    write_sweep(tmp_path / "other", "x-cpu", [("one", 0, "r0")])
    with pytest.raises(DualsegError, match=r"ensembles=x-cpu-/\.\./\.\./pair-seed0"):
        members_of(replace(STUDY, ensembles={"/../../pair": ("one", "two")}), tmp_path / "other")
    with pytest.raises(DualsegError, match="study and scale"):
        Sweep.named(tmp_path, "../..", "cpu", ())


def test_what_a_run_prints_goes_through_no_link(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "x-cpu")
    sweep.path.mkdir(parents=True)
    (tmp_path / "precious").write_text("years of work")
    sweep.log_file("r0").symlink_to(tmp_path / "precious")
    sweep.own_log_file("r0").write_text("a line")
    assert (tmp_path / "precious").read_text() == "years of work"
    assert sweep.own_log_file("r0").read_text() == "a line", "a log is added to"


def test_loose_runs_are_named_by_their_label_or_by_what_differs(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    def names(*runs: tuple[str | None, int, dict]) -> list[str]:
        folders = []
        for label, seed, changes in runs:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folders.append(study_run(folder, DICE, seed=seed, changes={"variant": label, **changes}))
        study, members = loose_study("mine", folders)
        assert list(study.variants) == list(dict.fromkeys(m.variant for m in members))
        assert study.against == {} and study.seeds == tuple(sorted({seed for _, seed, _ in runs}))
        return [member.variant for member in members]

    assert names(("one", 0, {}), ("two", 0, {"data.labeled": 4}), ("one", 1, {})) == ["one", "two", "one"]
    assert names((None, 0, {}), (None, 1, {})) == ["dual", "dual"]  # but for the seed they are the same
    four = {"data.labeled": 4, "method.keep_fraction": 0.2}
    assert names((None, 0, {}), (None, 0, four)) == [
        "data.labeled=8,method.keep_fraction=0.8",
        "data.labeled=4,method.keep_fraction=0.2",
    ]
    # one label, two configurations: of two studies
    assert names(("full", 0, {}), ("full", 1, {"data.labeled": 4})) == ["full data.labeled=8", "full data.labeled=4"]
    assert names((None, 0, {"data.root": "/here"}), (None, 1, {"data.root": "/there"})) == ["dual", "dual"]


def test_the_folds_of_a_cross_validation_are_one_row(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    folders = [
        study_run(tmp_path / f"{number}{fold}", DICE, changes={"variant": None, **of(fold)})
        for number, of in enumerate((lambda fold: {"data.fold": fold}, lambda fold: {"data.source": {"fold": fold}}))
        for fold in (0, 1)
    ]
    for own in (folders[:2], folders[2:]):
        study, members = loose_study("mine", own)
        assert list(study.variants) == ["dual"] and [member.fold for member in members] == [0, 1]


def test_the_rows_of_a_sweep_of_values_have_its_own_words(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "multirun-0")
    jobs = []
    for method in ("cps", "dual"):
        for fold in (0, 1):
            name = f"{method}{fold}"
            study_run(tmp_path / name, DICE, changes={"variant": None, "data.fold": fold, "batch.labeled": len(method)})
            jobs.append(Job(name, (), f"method={method} data.fold={fold}", "kind", 3, 0, None))
    sweep.write([*jobs, Job("missing", (), "method=bcp data.fold=0", "kind", 3, 0, None)], None, None)
    study, members = study_of_values(sweep)
    assert study.name == "multirun-0" and list(study.variants) == ["method=cps", "method=dual"]
    assert [(member.variant, member.fold) for member in members][:2] == [("method=cps", 0), ("method=cps", 1)]
    assert [(member.variant, member.name) for member in members][4:] == [("method=bcp", "missing")]
    found = Sweep.of_values("multirun-0", tmp_path)
    assert found is not None and found.path == sweep.path
    assert Sweep.of_values("nosuch", tmp_path) is None


def test_status_tells_the_mean_over_folds(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "multirun-0")
    jobs = [
        Job(f"{method}{fold}", (), f"data.fold={fold} method={method}", "kind", 3, 0, None, fold)
        for method in ("cps", "dual")
        for fold in (0, 1, 2)
    ]
    for job, dice in zip(jobs[:4], (0.7, 0.8, 0.9, 0.5), strict=True):  # of dual one fold, which has no deviation
        study_run(tmp_path / job.run, {"a": [dice]}, changes={"variant": None, "data.fold": job.fold})
    sweep.write(jobs, None, None)
    (told,) = [line for line in status(sweep).splitlines() if " folds" in line or "±" in line]
    assert told.startswith("method=cps: Dice 80.00 ± 10.00 %") and told.endswith(" 3 folds")


def test_loose_evaluations_are_named_by_their_folder(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    several = {"evaluated": {"run": ""}, "data.fold": 0}  # the fold is the first run's
    folders = [study_run(tmp_path / f"pair-seed{s}", DICE, seed=s, changes=several) for s in (0, 1)]
    study, members = loose_study("mine", folders)
    assert list(study.variants) == ["pair"] and [(member.seed, member.fold) for member in members] == [
        (0, None),
        (1, None),
    ]


def test_loose_runs_are_folders_each_given_once(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    run = study_run(tmp_path / "run", DICE)
    with pytest.raises(DualsegError, match="given twice"):
        loose_study("mine", [run, tmp_path / "." / "run"])
    with pytest.raises(DualsegError, match="no run folder"):
        loose_study("mine", [run, tmp_path])


def test_what_a_killed_sweep_left_goes_when_it_is_written_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "x-cpu")
    for folder in (sweep.path, sweep.path / "failed"):
        folder.mkdir(parents=True)
        (folder / ".0a1b2c3d.tmp.x.json").touch()
    sweep.write([], "x", "cpu")
    assert not list(sweep.path.rglob(".*"))
