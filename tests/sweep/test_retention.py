"""Removal of checkpoints: what a curve, a resumed run, a registered model or another sweep needs stays."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.checkpoints.record import CheckpointRecord, read_records, write_record
from orchestrator.cli.main import main
from orchestrator.config.arms import Arm
from orchestrator.config.schema import SuiteConfig
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.storage.base import Storage, open_storage
from orchestrator.sweep import retention
from orchestrator.sweep.driver_lease import HeldError, Lease
from orchestrator.sweep.ledger_curve import curve_from_ledger
from orchestrator.sweep.retention import CheckpointPruner, UnknownNeedsError, collect_garbage, plan_removal
from orchestrator.sweep.state import SweepState
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import make_outcome
from orchestrator.training.train_snapshot import SNAPSHOT, _written, repair
from policy.checkpoint_files import FrozenFile, frozen_card
from policy.errors import DemoscaleError
from sweep_runs import Run, ledger, sweep

SUITE = {"tasks": ["Lift"], "episodes": 3, "horizon": 50, "video_clips": 0}
SUCCESSES = {3: 1, 6: 3, 9: 2}
"""Successes of three episodes, by step: the checkpoint in the middle is the best."""


def asked(folder: Path, store: str, **sections: Any) -> SweepConfig:
    return sweep(folder, store, suite=SUITE, data={"demo_count": [1, 2]}, **sections)


def trained(state: SweepState, to: dict[int, int], scored_to: int = 9, shift: str = "nominal") -> None:
    """Store checkpoints of 1000 bytes and their scores. to: demo count -> last step. shift: as of
    `SweepState.score`.
    """
    for arm_id, arm in state.arms().items():
        for step in range(3, to[arm.demo_count] + 1, 3):
            mark = f"{arm.demo_count}{step}".ljust(16, "f")
            state.storage.put(f"arms/{arm_id}/step_{step:06d}/heads.safetensors", bytes(1000))
            record = CheckpointRecord(fingerprint=mark, loss=1.0, loss_video=0.0, loss_action=1.0)
            write_record(state.storage, arm_id, step, record)
            if step <= scored_to:
                suite = state.sweep.to_suite(shift)
                outcomes = [
                    make_outcome(spec, number < SUCCESSES[step])
                    for number, spec in enumerate(suite.episode_list())
                ]
                Ledger(state.storage, mark, state.protocol_of(shift, arm)).record(outcomes)


def left(storage: Storage) -> dict[str, list[int]]:
    """Return the steps with files by the arm's name."""
    found: dict[str, list[int]] = {}
    for key in storage.list("arms/"):
        _, arm_id, step, *_ = key.split("/")
        found.setdefault(arm_id.partition("_")[0], []).append(int(step.removeprefix("step_")))
    return found


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        ("", [9]),
        ("last", [9]),
        ("best", [6, 9]),
        ("every 2", [6, 9]),
        ("every 1", [3, 6, 9]),
        ("all", [3, 6, 9]),
    ],
)
def test_gc_of_a_finished_sweep_keeps_what_is_named_and_its_curve(
    folder: Path, store: str, keep: str, stay: list[int]
) -> None:
    config = asked(folder, store)
    state = SweepState.open(config, pin=True)
    trained(state, {1: 9, 2: 9})
    before, curve = left(state.storage), curve_from_ledger(state)
    plan = plan_removal(folder.name, str(folder), keep)
    assert left(state.storage) == before, "a plan removes nothing"
    assert plan.nbytes == 1000 * 2 * (3 - len(stay))
    assert collect_garbage(folder.name, str(folder), keep, print) == plan
    assert left(state.storage) == {"demos-1": stay, "demos-2": stay}
    again = SweepState.open(config, pin=True)
    assert curve_from_ledger(again) == curve, "scores stay"
    assert {arm.state for arm in again.board().arms.values()} == {"scored"}
    assert not again.without_torn(again.board()), "what was removed is not damaged"
    for arm_id in again.arms():
        removed = {step for step, one in read_records(again.storage, arm_id).items() if one.removed}
        assert removed == {3, 6, 9} - {*stay}
    assert not plan_removal(folder.name, str(folder), keep).removable


def test_gc_of_an_unfinished_sweep_keeps_what_a_resume_and_scoring_need(folder: Path, store: str) -> None:
    state = SweepState.open(asked(folder, store), pin=True)
    trained(state, {1: 9, 2: 6}, scored_to=3)
    collect_garbage(folder.name, str(folder), "last", print)
    assert left(state.storage) == {"demos-1": [6, 9], "demos-2": [3, 6]}


@pytest.mark.parametrize(("scored_to", "stay"), [(6, [3, 6, 9]), (9, [6, 9])])
def test_gc_keeps_the_checkpoint_that_is_reported_as_the_best(
    folder: Path, store: str, scored_to: int, stay: list[int]
) -> None:
    """It is known once all checkpoints have a score; until then each may be the best."""
    config = asked(folder, store)
    suite = SuiteConfig.model_validate(SUITE | {"select": 3, "report": "best"})
    state = SweepState.open(config.model_copy(update={"suite": suite}), pin=True)
    trained(state, {1: 9, 2: 9}, scored_to, "select")
    collect_garbage(folder.name, str(folder), "last", print)
    assert {*map(tuple, left(state.storage).values())} == {tuple(stay)}


def test_run_resumes_silently_from_the_newest_after_older_ones_went(folder: Path, store: str) -> None:
    """Ray Train refuses a list that names a folder which is not there."""
    state = SweepState.open(asked(folder, store), pin=True)
    trained(state, {1: 9, 2: 9})
    run = next(iter(state.arms()))
    arms, noted = open_storage(f"{folder}/arms"), read_records(state.storage, run)
    arms.put(
        f"{run}/{SNAPSHOT}",
        _written([(f"step_{step:06d}", one.to_json() | {"step": step}) for step, one in noted.items()]),
    )
    collect_garbage(folder.name, str(folder), "last", print)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("orchestrator.training.train_snapshot.is_complete", lambda *_: True)
        assert repair(arms, run, read_records(state.storage, run)) == [], "no word of damage"
    listed = json.loads(arms.get(f"{run}/{SNAPSHOT}"))["checkpoint_results"]
    assert [one["checkpoint_dir_name"] for one in listed] == ["step_000009"]


def test_gc_keeps_registered_models_and_the_needs_of_other_sweeps(
    folder: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SweepState.open(asked(folder, store), pin=True)
    trained(state, {1: 9, 2: 9})
    monkeypatch.setattr(retention, "registered_checkpoints", lambda uri: frozenset({"13".ljust(16, "f")}))
    other = asked(folder, store, train={"keep": "best"}).model_copy(update={"name": "other"})
    longer = {"steps": 12, "schedule": "constant"}
    assert other.train.recorded() == state.sweep.train.recorded(), "the same arms"
    SweepState.open(other, pin=True)
    SweepState.open(asked(folder, store, train=longer).model_copy(update={"name": "longer"}), pin=True)
    collect_garbage(folder.name, str(folder), "last", print)
    assert left(state.storage) == {"demos-1": [3, 6, 9], "demos-2": [6, 9]}
    sweeps = open_storage(f"{folder}/sweeps")
    sweeps.put("broken.json", b"{}")
    with pytest.raises(UnknownNeedsError, match=r"the sweep broken .* remove sweeps/broken.json"):
        collect_garbage(folder.name, str(folder), "last", print)


def test_gc_removes_shared_weights_with_the_last_checkpoint_that_refers_to_them(
    folder: Path, store: str
) -> None:
    state = SweepState.open(asked(folder, store), pin=True)
    trained(state, {1: 9, 2: 9})
    (arm_id, _), *_ = state.arms().items()
    weights = {step: FrozenFile(10, f"{step}" * 64) for step in (3, 9)}
    for step, file in weights.items():
        state.storage.put(file.key, bytes(10))
        name = "unet/diffusion_pytorch_model.safetensors"
        state.storage.put(f"arms/{arm_id}/step_{step:06d}/frozen.json", frozen_card({name: file}))
    plan = collect_garbage(folder.name, str(folder), "", print)
    assert [one.place for one in plan.removable if not one.checkpoint] == [weights[3].key]
    assert state.storage.list("frozen/") == [weights[9].key]


def test_gc_of_a_running_sweep_raises_and_removes_nothing(folder: Path, store: str) -> None:
    state = SweepState.open(asked(folder, store), pin=True)
    trained(state, {1: 9, 2: 9})
    before = left(state.storage)
    with (
        Lease(state.storage, folder.name, lambda _: None).claim(),
        pytest.raises(HeldError, match="runs it; wait for its end"),
    ):
        collect_garbage(folder.name, str(folder), "", print)
    assert left(state.storage) == before


def test_gc_command_lists_bytes_and_removes_only_without_dry_run(folder: Path, store: str) -> None:
    state = SweepState.open(asked(folder, store), pin=True)
    trained(state, {1: 9, 2: 9})
    call = ["gc", folder.name, "--storage", str(folder)]
    told = json.loads(CliRunner().invoke(main, [*call, "--dry-run", "--json"]).stdout)
    assert (told["bytes"], told["kept"], len(told["removable"])) == (4000, 2, 4)
    shown = CliRunner().invoke(main, [*call, "--dry-run", "--keep", "every 2"]).stdout
    assert "0.0 MiB  arms/demos-1_ratio-0_seed-0_" in shown
    assert "in 2 items; 4 checkpoints of 0.0 MiB stay" in shown
    assert left(state.storage)["demos-1"] == [3, 6, 9]
    assert CliRunner().invoke(main, call).stdout.endswith("removed\n")
    assert left(state.storage)["demos-1"] == [9]
    wrong = CliRunner().invoke(main, [*call, "--keep", "every 0"])
    assert (wrong.exit_code, "write all, last, best or every n" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("shared", [False, True])
def test_pruner_removes_at_each_look_what_train_keep_does_not_name(
    folder: Path, store: str, shared: bool
) -> None:
    state = SweepState.open(asked(folder, store, train={"keep": "last"}), pin=True)
    trained(state, {1: 6, 2: 9})
    if shared:
        SweepState.open(asked(folder, store).model_copy(update={"name": "other"}), pin=True)
    board, asked_for = state.board(), threading.Event()

    def registered() -> frozenset[str]:
        asked_for.set()
        return frozenset()

    pruner = CheckpointPruner(state, board, print, registered)
    for arm_id in board.arms:
        pruner.look(arm_id)
    pruner.close()
    assert asked_for.is_set()
    assert left(state.storage) == {"demos-1": [3, 6], "demos-2": [3, 6, 9] if shared else [9]}
    assert {name: arm.removed for name, arm in board.arms.items()} == {
        name: {3, 6} if arm.arm.demo_count == 2 and not shared else set() for name, arm in board.arms.items()
    }


def test_pruner_without_mlflow_says_so_once_and_removes_nothing(folder: Path, store: str) -> None:
    state, lines = SweepState.open(asked(folder, store, train={"keep": "last"}), pin=True), list[str]()
    trained(state, {1: 9, 2: 9})

    def away() -> frozenset[str]:
        raise DemoscaleError("MLflow is away")

    pruner = CheckpointPruner(state, state.board(), lines.append, away)
    for arm_id in [*state.arms()] * 2:
        pruner.look(arm_id)
    pruner.close()
    assert len(lines) == 1
    assert "stay for now: MLflow is away" in lines[0]
    assert left(state.storage)["demos-1"] == [3, 6, 9]


def test_keep_changes_no_id_and_refuses_unknown_values(folder: Path, store: str) -> None:
    plain = SweepState.open(asked(folder, store))
    for keep in ("all", "last", "best", "every 2"):
        other = SweepState.open(asked(folder, store, train={"keep": keep}))
        assert other.arms() == plain.arms()
        assert SweepConfig.model_validate(other.sweep.model_dump(mode="json")) == other.sweep
        arm = Arm(2, 0.0, 0)
        assert other.own_job(arm).train.recorded() == plain.own_job(arm).train.recorded()
    assert "keep" not in plain.sweep.model_dump()["train"]
    for wrong in ("some", "every", "every 0", 3):
        with pytest.raises(ValueError, match="keep"):
            asked(folder, store, train={"keep": wrong})


def test_sweep_with_more_checkpoints_to_score_passes_over_removed_ones(folder: Path, store: str) -> None:
    """A longer suite is another protocol: what was removed has no score on it, and the rest is scored."""
    config = asked(folder, store, train={"schedule": "constant"})
    state = SweepState.open(config, pin=True)
    trained(state, {1: 9, 2: 9})
    collect_garbage(folder.name, str(folder), "", print)
    longer = config.model_copy(update={"suite": config.suite.model_copy(update={"episodes": 4})})
    board = SweepState.open(longer, pin=True).board()
    for arm in board.arms.values():
        assert arm.scoring == {3: (0, 0), 6: (0, 0), 9: (0, 4)}
        assert arm.state == "scoring"
    with pytest.raises(SweepError, match=r"train.steps: .* was trained on to step 9; set train.steps to 9"):
        SweepState.open(asked(folder, store, train={"steps": 6, "schedule": "constant"}), pin=True)


@pytest.mark.full
@pytest.mark.ray
def test_sweep_that_keeps_the_last_has_its_curve_and_resumes_without_the_others(
    folder: Path, store: str, ray_cluster: None
) -> None:
    def fit(job: Any, arms: str, resources: dict[str, float], channel: Any, attempts: int = 1) -> Any:
        for step in (3, 6, 9):
            open_storage(arms).put(f"{job.arm_id}/step_{step:06d}/heads.safetensors", bytes(10))
        return FakeTrainer(0.001)(job, arms, resources, channel, attempts)

    config = asked(folder, store, train={"keep": "last"})
    done = Run(config, fit)()
    assert set(done.states.values()) == {"scored"}
    assert left(done.run.state.storage) == {"demos-1": [9], "demos-2": [9]}
    again = Run(config, fit)()
    assert done.curve
    assert again.curve
    assert again.curve.points == done.curve.points
    assert len(ledger(folder)) == 2 * 3 * 3, "every checkpoint was scored once"
    assert again.said("already scored, not played again: 6 checkpoints")
