"""Arithmetic of training, in checkpoints, notes, status, MLflow and curve: recorded, and part of no key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_folder import CheckpointFolder
from orchestrator.checkpoints.record import CheckpointRecord, read_records, write_record
from orchestrator.cli.status_commands import Progress
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.episode_store import latest_version
from orchestrator.report.sample_efficiency_curve import curve_from_mlflow
from orchestrator.storage.base import open_storage
from orchestrator.sweep.ledger_curve import curve_from_ledger
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.tracking.mlflow_writer import client
from orchestrator.training.loop import TRAINED_ON, TrainJob, train
from policy.checkpoint import load_card
from policy.presets import PRESETS
from selected_episodes import selected
from sim_workers.arithmetic import Arithmetic

EPYC = Arithmetic(processor="AMD EPYC", model="25/17", instruction_set="AVX512", threads=1)
XEON = replace(EPYC, processor="Intel Xeon", model="6/143")


def test_train_resumed_on_another_processor_records_both_in_their_order(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    arm, settings = Arm(3, 1.0, 0), Train(steps=4, batch_size=4, checkpoint_every=2, warmup_steps=2)
    version = latest_version(open_storage(store))
    job = TrainJob(
        arm, "arm", store, version, selected(store, arm), PRESETS["tiny"], settings, "action", "none"
    )
    kept = {name: CheckpointFolder(tmp_path / name) for name in ("first", "moved", "stayed")}
    for folder in kept.values():
        folder.folder.mkdir()

    def trained(name: str, here: Arithmetic, resume: Path | None) -> list[Any]:
        monkeypatch.setattr(Arithmetic, "here", classmethod(lambda cls, device="cpu": here))
        train(job, 0, 1, resume, kept[name])
        last = load_card(kept[name].folder / "step_000004").provenance
        assert kept[name].reports[-1][1]["trained_on"] == last[TRAINED_ON]
        return [Arithmetic.from_json(one) for one in last[TRAINED_ON]]

    assert trained("first", EPYC, None) == [EPYC]
    half = kept["first"].folder / "step_000002"
    assert trained("moved", XEON, half) == [EPYC, XEON]
    assert trained("stayed", EPYC, half) == [EPYC]


def test_checkpoint_record_of_an_earlier_version_has_no_arithmetic(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    losses = {"loss": 0.5, "loss_video": 0.25, "loss_action": 0.25}
    write_record(storage, "new", 3, CheckpointRecord(fingerprint="f", trained_on=(EPYC,), **losses))
    storage.put(
        "checkpoints/old/step_000003.json",
        b'{"checkpoint": "f", "loss": 1, "loss_video": 1, "loss_action": 1}',
    )
    assert read_records(storage, "new")[3].trained_on == (EPYC,)
    assert read_records(storage, "old")[3].trained_on == ()


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_with_arms_of_two_processors_is_one_curve_and_says_so(folder: Path, store: str) -> None:
    asked = SweepConfig.model_validate(
        {
            "name": folder.name,
            "data": {"episodes": store, "demo_count": [1, 2]},
            "train": {"steps": 2, "batch_size": 2, "checkpoint_every": 2},
            "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 50},
            "storage": str(folder),
            "mlflow": f"sqlite:///{folder / 'mlflow.db'}",
        }
    )
    machines = {1: FakeTrainer(trained_on=(EPYC,)), 2: FakeTrainer(trained_on=(XEON,))}

    def fit(job: Any, *arguments: Any) -> Any:
        return machines[job.arm.demo_count](job, *arguments)

    said = "Arms were trained on 2 kinds of processor"
    curve = SweepRun(asked, lambda line: None, fit=fit, players=FakeEvalBackend()).run()
    state = SweepState.open(asked)
    assert curve
    assert sorted(one.arm.demo_count for one in curve.arms) == [1, 2]
    read = curve_from_mlflow(asked.mlflow, asked.name, state.store)
    for found in (curve, read, curve_from_ledger(state)):
        assert found
        assert [one.trained_on for one in found.arms] == [(EPYC,), (XEON,)]
        assert any(sentence.startswith(said) for sentence in found.to_json()["answer"])
    assert said in read.page([])
    progress = Progress.of(state)
    assert said in progress.summary()
    listed = [arm["trained_on"] for arm in progress.to_json()["arms"]]
    assert len(listed) == 2
    assert [EPYC.to_json()] in listed
    assert [XEON.to_json()] in listed
    mlflow = client(asked.mlflow)
    run = mlflow.get_run(read.arms[0].run_id)
    assert run.data.tags["demoscale.simulated_on"] == "not recorded", "the pool is a fake"
    assert "Intel Xeon" not in run.data.tags["demoscale.trained_on"]
