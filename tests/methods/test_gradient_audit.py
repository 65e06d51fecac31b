"""The gradient audit: what is live, what is absent, and that detaching any term turns its row red."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from method_toys import outputs, stored_batch, stored_dual, tiny_parts
from rich.console import Console

import dualseg.audit
from dualseg.data import Phantom
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import DualNetwork, LossTerm, SegmentationMethod, Term, Time, base, dual
from dualseg.methods.audit import AuditRow, audit
from dualseg.reporting.audit_table import audit_table

OBJECTIVES = {
    "described": {(name, i) for name in DualNetwork.TERMS for i in "ab"},
    "released": {(name, i) for name in ("supervised_ce", "supervised_dice", "rectification") for i in "ab"}
    | {("cross_pseudo", "a"), ("uncertainty", "a"), ("cosine", None)},
}
SWITCHED_OFF = "\N{ESCAPE}[2m"
RED = "\N{ESCAPE}[1;31m"


def audited(batches: int = 2, **settings: object) -> list[AuditRow]:
    return audit(stored_dual(outputs(2), **settings), [stored_batch(2, seed=s) for s in range(batches)], 10)


def verdicts(rows: list[AuditRow]) -> dict[tuple[str, str | None], str]:
    return {(row.term, row.network): row.verdict for row in rows}


def text_of(rows: list[AuditRow], width: int = 120) -> dict[str, str]:
    """First cells "term owner" -> the row's line as the terminal gets it, colours included."""
    console = Console(width=width, force_terminal=True, color_system="standard", record=True, quiet=False)
    with console.capture() as capture:
        console.print(audit_table(rows, ["a", "b"], 2))
    lines = [line for line in capture.get().splitlines() if any(name in line for name in DualNetwork.TERMS)]
    assert len(lines) == len(rows)
    return {f"{row.term} {row.network or ''}": line for row, line in zip(rows, lines, strict=True)}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_term_is_live_and_the_dropped_ones_absent(objective):
    rows = audited(objective=objective)
    live = OBJECTIVES[objective]
    absent = {(name, None) for name in DualNetwork.TERMS if name not in {term for term, _ in live}}
    assert verdicts(rows) == dict.fromkeys(live, "live") | dict.fromkeys(absent, "absent")
    for row in rows:
        meant = {"a", "b"} if row.network is None else {row.network}
        if row.verdict == "live":
            assert {name for name, norm in row.norms.items() if norm > 0} == meant
            assert row.empty_masks == 0
    assert {term for term, _ in absent} == ({"entropy_filtered", "contrast"} if objective == "released" else set())


def test_norms_are_the_weighted_ones_at_full_ramp_and_the_largest_of_the_batches():
    batches = [stored_batch(2, seed=s) for s in range(2)]
    method = stored_dual(outputs(2), rampup_iterations=1000, terms={"cosine": {"weight": 3.0}})
    rows = {(row.term, row.network): row for row in audit(method, batches, 10_000)}
    for name in ("supervised_ce", "cosine", "cross_pseudo"):
        norms = []
        for batch in batches:
            term = next(t for t in method.loss_terms(batch, Time(10_000, 10_000)) if (t.name, t.network) == (name, "b"))
            method.zero_grad()
            term.value.backward()
            weight = 3.0 if name == "cosine" else 1.0
            norms.append(weight * method.networks["b"].logits.grad.norm().item())
        assert rows[name, "b"].norms == pytest.approx({"a": 0.0, "b": max(norms)}, rel=1e-5)
        if name == "supervised_ce":
            assert norms[0] != norms[1]


def test_weights_do_not_change():
    method = stored_dual(outputs(2))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    audit(method, [stored_batch(2)], 10)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


@pytest.mark.parametrize(
    ("objective", "name"), [(o, name) for o in OBJECTIVES for name in sorted({term for term, _ in OBJECTIVES[o]})]
)
def test_a_detached_term_turns_red_and_no_other(objective, name, monkeypatch):
    """The mutation: each loss function in turn returns a value that is cut off the graph."""
    module = base if name.startswith("supervised") else dual
    original: Callable[..., torch.Tensor] = getattr(module, name)

    def detached(*args, **kwargs):
        value = original(*args, **kwargs)
        return (value[0].detach(), *value[1:]) if isinstance(value, tuple) else value.detach()

    monkeypatch.setattr(module, name, detached)
    rows = audited(objective=objective)
    for key, verdict in verdicts(rows).items():
        expected = "live" if key in OBJECTIVES[objective] else "absent"
        assert verdict == ("dead" if key[0] == name else expected), key
    lines = text_of(rows)
    for row in rows:
        line = lines[f"{row.term} {row.network or ''}"]
        assert (RED in line) == (row.term == name)
        assert ("ON, BUT SENDS NOTHING" in line) == (row.term == name)


def test_probabilities_cut_off_the_graph_turn_red(monkeypatch):
    """The released script's own mistake: detached predictions of the right value."""
    original = dual.entropy_filtered
    monkeypatch.setattr(dual, "entropy_filtered", lambda log_p, *rest: original(log_p.detach(), *rest))
    found = verdicts(audited())
    assert {key for key, verdict in found.items() if verdict == "dead"} == {
        ("entropy_filtered", "a"), ("entropy_filtered", "b"),
    }  # fmt: skip


def test_a_missing_stop_gradient_is_a_leak(monkeypatch):
    monkeypatch.setattr(dual, "kl_divergence", lambda log_p, log_q: (log_q.exp() * (log_q - log_p)).sum(dim=1))
    rows = audited()
    leaking = {(name, i) for name in ("cross_pseudo", "uncertainty") for i in "ab"}
    assert {key for key, verdict in verdicts(rows).items() if verdict == "leak"} == leaking
    lines = text_of(rows)
    assert all("REACHES ANOTHER NETWORK" in lines[f"{n} {i}"] and RED in lines[f"{n} {i}"] for n, i in leaking)


def test_an_empty_mask_is_told_from_a_dead_term():
    rows = audited(confidence=1.0, keep_fraction=1.0)  # nobody is that sure; nothing is unreliable
    expected = {("rectification", "a"), ("rectification", "b"), ("contrast", "a"), ("contrast", "b")}
    empty = {(row.term, row.network): row for row in rows if row.verdict == "empty"}
    assert empty.keys() == expected
    assert all(row.empty_masks == 2 for row in empty.values())
    assert "mask empty" in text_of(rows)["rectification a"]
    assert not any(row.verdict == "dead" for row in rows)


def test_a_mask_that_is_empty_now_and_then_is_counted_and_the_term_live():
    method = stored_dual(outputs(2))
    batches = [stored_batch(2), stored_batch(2)]
    original, calls = method.loss_terms, []

    def first_empty(batch: Batch, time: Time) -> list[LossTerm]:
        method.confidence = 0.6 if calls else 1.0
        calls.append(batch)
        return original(batch, time)

    method.loss_terms = first_empty  # type: ignore[method-assign]
    row = next(r for r in audit(method, batches, 10) if (r.term, r.network) == ("rectification", "b"))
    assert (row.verdict, row.empty_masks) == ("live", 1)
    assert "1/2" in text_of([row])["rectification b"]


def test_switched_off_terms_are_absent():
    rows = audited(terms={"cosine": {"enabled": False}})
    assert [(row.term, row.verdict) for row in rows if row.term == "cosine"] == [("cosine", "absent")]
    line = text_of(rows)["cosine "]
    assert "absent" in line
    assert SWITCHED_OFF in line


def test_a_shared_term_that_misses_one_network_is_dead():
    class OneSided(SegmentationMethod):
        takes = ("a", "b")
        TERMS = {"agreement": Term("both")}

        def objective(self, batch, time):
            p = {name: self.see(name, batch.image).p for name in self.takes}
            yield self.term("agreement", None, (p["a"] - p["b"].detach()).square().mean())

    batch = Batch(torch.randn(2, 1, 8, 8, 8), torch.zeros(0, 8, 8, 8), [])
    (row,) = audit(OneSided(**tiny_parts()), [batch], 10)
    assert row.verdict == "dead"
    assert row.norms["a"] > 0 == row.norms["b"]


def test_a_narrow_terminal_cuts_no_name():
    rows = audited()
    lines = text_of(rows, width=80)
    assert all(row.term in lines[f"{row.term} {row.network}"] for row in rows)


def test_no_batch_is_refused():
    with pytest.raises(DualsegError, match="at least one batch"):
        audit(stored_dual(outputs(2)), [], 10)


@pytest.fixture
def words(tiny: Callable[..., list[str]], phantom: Phantom, tmp_path: Path) -> list[str]:
    own = [word for word in tiny(phantom.root, tmp_path / "runs") if not word.startswith("base_channels")]
    return [*own, "base_channels=4"]  # of two, a confident voxel is rare so early


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_command_shows_the_table(objective, words, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (5,))
    # so early in a run few voxels are confidently foreground: a low bar keeps the correction's mask from being empty
    outcome = command(dualseg.audit.main, *words, f"objective={objective}", "method.confidence=0.5")
    assert outcome.code == 0, outcome.err
    rows = [line for line in outcome.out.splitlines() if any(name in line for name in DualNetwork.TERMS)]
    live = OBJECTIVES[objective]
    assert sum(" live " in row for row in rows) == len(live)
    assert sum(" absent " in row for row in rows) == len(set(DualNetwork.TERMS) - {term for term, _ in live})
    assert "into a" in outcome.out
    assert "into b" in outcome.out
    assert list(tmp_path.iterdir()) == [], "the audit leaves no folder behind"


def test_command_fails_on_a_red_row(words, command, monkeypatch):
    original = dual.cosine
    monkeypatch.setattr(dual, "cosine", lambda p, q: original(p, q).detach())
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (1,))
    outcome = command(dualseg.audit.main, *words)
    outcome.complains("cosine (a), cosine (b): on, but the gradient")
    assert sum("cosine" in line and "ON, BUT SENDS NOTHING" in line for line in outcome.out.splitlines()) == 2


def test_command_trains_on_while_a_mask_is_empty(words, command, monkeypatch):
    verdicts = iter(["empty", "live", "empty"])
    monkeypatch.setattr(
        "dualseg.methods.audit.audit", lambda *_: [AuditRow("contrast", "a", {"a": 1.0, "b": 0.0}, 0, next(verdicts))]
    )
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (1, 2, 3))
    outcome = command(dualseg.audit.main, *words)
    assert (outcome.code, next(verdicts)) == (0, "empty"), "stops at the first audit without an empty mask"
    assert "Never audited" not in outcome.out
    monkeypatch.setattr("dualseg.methods.audit.audit", lambda *_: [AuditRow("contrast", "a", {}, 3, "empty")])
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (1, 2))
    outcome = command(dualseg.audit.main, *words)
    assert "Never audited: contrast, " in outcome.out and "after 3 iterations" in outcome.out
    assert "weights=RUN_FOLDER" in outcome.out


@pytest.mark.data
def test_every_term_of_the_study_on_left_atrium_is_live(la_root, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    # live after 45 iterations (AVX512): audited at once where WARM_UP would be at its third, trained as long at most.
    # The contrast draws one voxel of a batch here, and one sends nothing where a ReLU left its features one active
    # channel, whose direction cannot turn (seen with AVX2): three batches, as the command takes them.
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (60, 40, 100))
    few = ["data.labeled=2", "data.held_out_test=77", "evaluate_on=[]"]  # volumes; all else is the study's
    outcome = command(dualseg.audit.main, "experiment=la_cpu", f"data.root={la_root}", *few)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(" live ") == 2 * len(DualNetwork.TERMS), outcome.out


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_command_takes_gradients_in_float32(precision, words, command, monkeypatch):
    """Unscaled, a weak term's would be rounded to zero in float16."""
    seen = []

    def watch(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return []

    monkeypatch.setattr("dualseg.methods.audit.audit", watch)
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (1,))
    outcome = command(dualseg.audit.main, *words, f"trainer.precision={precision}")
    assert outcome.code == 0, outcome.err
    assert seen == [False]


def test_help_answers_without_torch():
    code = "import sys; sys.argv = ['dualseg-audit', '--help']\nfrom dualseg.audit import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules, 'torch was imported'\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "dualseg-audit" in done.stdout
