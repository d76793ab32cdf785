"""Records of the outbox, of this version and as earlier ones left them on disk."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.arms import Arm
from orchestrator.tracking.mlflow_writer import MlflowWriter
from orchestrator.tracking.outbox import OutboxWriter, journals
from orchestrator.tracking.outbox_records import (
    KINDS,
    Describe,
    DescribeArm,
    FinishSweep,
    LogCheckpoint,
    LogCurve,
    LogMetrics,
    OutboxRecord,
    SetStatus,
    SetTags,
    StoreArtifact,
    from_note,
    to_note,
)
from orchestrator.tracking.outbox_relay import OutboxRelay

ARM = Arm(1, 0.0, 0)
ARM_ID = "demos-1_ratio-0_seed-0_0123456789abcdef"
DATA = {
    "name": "lift",
    "digest": "d1",
    "uri": "/data/lift",
    "profile": '{"version": 1, "episodes": 16}',
    "context": "training",
}
RECORDS: list[OutboxRecord] = [
    DescribeArm(arm_id=ARM_ID, arm=ARM, facts={"demoscale.data": "d1"}, datasets=(DATA,)),
    SetTags(arm_id=None, tags={"demoscale.code": "abc"}),
    SetTags(arm_id=ARM_ID, tags={"demoscale.cost": "1.0 CPU-h"}),
    LogCheckpoint(arm_id=ARM_ID, step=9, fingerprint="f1", uri="/runs/arms/a/step_000009"),
    LogMetrics(arm_id=ARM_ID, step=9, values={"loss": 0.25}, at=1764000000000),
    LogMetrics(arm_id=ARM_ID, step=9, values={"success_rate": 0.5}, at=1764000000000, checkpoint="f1"),
    LogCheckpoint(
        arm_id=ARM_ID, step=9, fingerprint="f1", uri="/c", contract={"cameras": ["front"]}, example=True
    ),
    LogCurve(step=25, values={"success_rate/ratio-1": 0.5}, at=1764000000000),
    Describe(arm_id=None, text="- An answer.", links={"page": "curve.html"}),
    SetStatus(arm_id=ARM_ID, status="KILLED", at=1764000000000),
    StoreArtifact(arm_id=ARM_ID, name="cost.json", data=b"{}", digest="44136fa3"),
    StoreArtifact(arm_id=None, name="sweep.yaml", data=b"name: lift"),
    FinishSweep(),
]
WRITTEN_BEFORE = """\
{"sweep": "old", "training": "t1", "protocol": "p1", "steps": 9, "artifacts": "ARTIFACTS"}
{"do": "artifact", "arm_id": null, "name": "sweep.yaml", "digest": "d2", "data": "000001"}
{"do": "tags", "arm_id": null, "tags": {"demoscale.code": "abc"}}
{"do": "arm", "arm_id": "demos-1_ratio-0_seed-0_t1", "arm": {"demo_count": 1, "action_free_ratio": 0.0, \
"seed": 0, "kind": "video_action"}, "facts": {"demoscale.data": "d1"}, "datasets": [{"name": "lift", \
"digest": "d1", "uri": "/data/lift", "profile": "{}", "context": "training"}]}
{"do": "checkpoint", "arm_id": "demos-1_ratio-0_seed-0_t1", "step": 9, "fingerprint": "f1", "uri": "/c"}
{"do": "metrics", "arm_id": "demos-1_ratio-0_seed-0_t1", "step": 9, "values": {"loss": 0.25}, "at": 1000}
{"do": "metrics", "arm_id": "demos-1_ratio-0_seed-0_t1", "step": 9, "values": {"success_rate": 0.5}, \
"at": 1000, "checkpoint": "f1"}
{"do": "finish"}
"""
"""A journal as version 0.1 wrote it before records had types; ARTIFACTS is a folder."""


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_record_round_trips_through_its_json_object(record: OutboxRecord) -> None:
    note, data = to_note(record)
    read = json.loads(json.dumps(note)) | ({} if data is None else {"data": data, "file": "000001"})
    assert from_note(read) == record
    assert note["do"] in KINDS


def test_apply_calls_the_method_of_the_writer() -> None:
    calls: list[str] = []
    names = {record.do for record in RECORDS}
    assert names == {*KINDS}
    assert all(callable(getattr(MlflowWriter, name)) for name in names)
    writer: Any = SimpleNamespace(**{name: lambda *_, name=name: calls.append(name) for name in names})
    for record in RECORDS:
        record.apply(writer)
    assert calls == [record.do for record in RECORDS]


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"do": "of_a_later_version"}, "unknown kind of_a_later_version"),
        ({"do": "metrics", "arm_id": "a", "step": 1, "values": {}, "unit": "s"}, "unknown fields: unit"),
        ({"do": "metrics", "arm_id": "a"}, "incomplete"),
        (
            {"do": "artifact", "arm_id": None, "name": "x", "data": None},
            "data of an artifact record is missing",
        ),
    ],
)
def test_relay_keeps_a_record_of_another_version_and_delivers_the_others(
    tmp_path: Path, note: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_note(note)
    journal, lines, steps = OutboxWriter(tmp_path, {}), list[str](), list[int]()
    journal.append({name: value for name, value in note.items() if name != "data"})
    journal.append(*to_note(LogMetrics(arm_id="a", step=2, values={})))
    journal.close()
    writer = SimpleNamespace(open=lambda: None, metrics=lambda arm_id, step, *_: steps.append(step))
    relay = OutboxRelay("", tmp_path, {}, lines.append, lambda uri, **about: writer)
    relay.enqueue(LogMetrics(arm_id="a", step=3, values={}))
    assert relay.wait(20)
    relay.close()
    assert steps == [2, 3]
    assert relay.refused == 1
    assert any(message in line for line in lines)
    (refused,) = tmp_path.glob("*.refused")
    assert json.loads(refused.read_text())["do"] == note["do"]


def test_relay_delivers_a_journal_of_an_earlier_version(tmp_path: Path) -> None:
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "telling"
    journal = folder / "00000000000000000001-7-abcdef.jsonl"
    (folder / journal.stem).mkdir(parents=True)
    (folder / journal.stem / "000001").write_bytes(b"name: old")
    journal.write_text(WRITTEN_BEFORE.replace("ARTIFACTS", str(tmp_path / "artifacts")))
    about = json.loads(journal.read_text().splitlines()[0])
    relay = OutboxRelay(uri, folder, about)
    relay.enqueue(LogMetrics(arm_id="demos-1_ratio-0_seed-0_t1", step=3, values={"loss": 0.5}, at=500))
    assert relay.wait(60)
    relay.close()
    assert relay.refused == 0
    assert journal not in journals(folder)
    from orchestrator.tracking.mlflow_writer import client

    mlflow = client(uri)
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("demoscale").experiment_id])
    arm, sweep = sorted(runs, key=lambda run: run.data.tags["demoscale.arm"] == "-")
    assert sweep.info.status == "FINISHED"
    assert sweep.data.tags["demoscale.code"] == "abc"
    assert Path(mlflow.download_artifacts(sweep.info.run_id, "sweep.yaml")).read_text() == "name: old"
    assert arm.data.params == {
        "policy": "video_action",
        "demo_count": "1",
        "action_free_ratio": "0.0",
        "seed": "0",
    }
    assert arm.data.tags["demoscale.data"] == "d1"
    assert [data.dataset.digest for data in arm.inputs.dataset_inputs] == ["d1"]
    losses = mlflow.get_metric_history(arm.info.run_id, "loss")
    assert sorted((loss.step, loss.value, loss.timestamp) for loss in losses) == [
        (3, 0.5, 500),
        (9, 0.25, 1000),
    ]
    (model,) = mlflow.search_logged_models([arm.info.experiment_id])
    assert model.tags["demoscale.checkpoint"] == "f1"
    assert [(metric.key, metric.value) for metric in model.metrics] == [("success_rate", 0.5)]
