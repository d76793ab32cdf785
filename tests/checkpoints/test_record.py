"""Records of a sweep's checkpoints: notes of every version are read, and written as before."""

import json
from pathlib import Path

import pytest

from orchestrator.checkpoints.record import CheckpointRecord, note_damaged, read_records, write_record
from orchestrator.storage.base import open_storage

NOTE = {
    "loss": 0.5,
    "loss_video": 0.125,
    "loss_action": 0.375,
    "clips_with_actions": 24,
    "clips_action_free": 12,
    "action_free_ratio_consumed": 0.5,
    "checkpoint": "0123456789abcdef",
}
LOSSES_ALONE = {name: NOTE[name] for name in ("loss", "loss_video", "loss_action", "checkpoint")}


@pytest.mark.parametrize("note", [NOTE, LOSSES_ALONE])
def test_checkpoint_note_round_trip_is_byte_for_byte(note: dict[str, object]) -> None:
    record = CheckpointRecord.from_json(note)
    assert record.fingerprint == "0123456789abcdef"
    assert json.dumps(record.to_json()) == json.dumps(note)
    assert record.metrics == {name: value for name, value in note.items() if name != "checkpoint"}


def test_damaged_checkpoint_has_no_record_until_it_is_written_again(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    record = CheckpointRecord.from_json(NOTE)
    for step in (100, 200):
        write_record(storage, "arm", step, record)
    assert (tmp_path / "checkpoints/arm/step_000100.json").read_text() == json.dumps(NOTE)
    note_damaged(storage, "arm", 200)
    assert read_records(storage, "arm") == {100: record}
    write_record(storage, "arm", 200, record)
    assert read_records(storage, "arm") == {100: record, 200: record}
