"""Import of RLDS datasets (TFRecord files of tf.train.Example) without TensorFlow."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from PIL import Image
from tfrecord import example_pb2

from lerobot_datasets import imported, numbered, numbers_of
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source

SAID: dict[str, Any] = {"task": "Lift", "hz": 5.0}


def masked(data: bytes) -> bytes:
    plain = crc32c(data)
    return struct.pack("<I", ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def png(picture: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def example(episode: int, length: int, **changed: Any) -> bytes:
    action = np.sin(np.arange(length)[:, None] + np.arange(7) + episode).astype(np.float32)
    values: dict[str, Any] = {
        "steps/action": action,
        "steps/observation/state": action[:, :5],
        "steps/observation/image": [png(p) for p in numbered(range(20 * episode, 20 * episode + length))],
        "steps/language_instruction": [b"lift the cube"] * length,
        "steps/is_last": [int(i == length - 1) for i in range(length)],
    } | changed
    message = example_pb2.Example()
    for name, value in values.items():
        feature = message.features.feature[name]
        if isinstance(value, np.ndarray):
            feature.float_list.value.extend(value.ravel().tolist())
        elif isinstance(value[0], bytes):
            feature.bytes_list.value.extend(value)
        else:
            feature.int64_list.value.extend(value)
    return message.SerializeToString()


def tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(side) for side in shape]}, "dtype": dtype}}


def dataset(root: Path, shards: Sequence[Sequence[bytes]]) -> Path:
    root.mkdir(parents=True)
    picture = {
        "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "png"}
    }
    observation = {"featuresDict": {"features": {"state": tensor(5), "image": picture}}}
    steps = {
        "observation": observation,
        "action": tensor(7),
        "language_instruction": {"text": {}},
        "is_last": tensor(dtype="bool"),
    }
    features = {
        "featuresDict": {
            "features": {"steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}}}
        }
    }
    (root / "features.json").write_text(json.dumps(features))
    (root / "dataset_info.json").write_text(json.dumps({"name": "lift_demos", "version": "1.0.0"}))
    for number, shard in enumerate(shards):
        (root / f"lift_demos-train.tfrecord-{number:05d}-of-{len(shards):05d}").write_bytes(
            b"".join(record(data) for data in shard)
        )
    return root


def test_rlds_import_reads_the_episodes_of_every_shard(tmp_path: Path) -> None:
    root = dataset(tmp_path / "lift_demos/1.0.0", [[example(0, 6), example(1, 7)], [example(2, 5)]])
    source, episodes, left_out = imported(root, tmp_path / "store", **SAID)
    assert (source.format, source.contract.image_size, source.contract.control_hz) == ("RLDS", (32, 64), 5.0)
    assert left_out == []
    for episode, length in enumerate((6, 7, 5)):
        got = episodes[f"episode_{episode:06d}"]
        assert numbers_of(got.frames["image"]) == list(range(20 * episode, 20 * episode + length - 1)), (
            "the last step's action is undefined"
        )
        assert got.instruction == "lift the cube"
        assert got.action is not None
        assert np.allclose(
            got.action, np.sin(np.arange(length - 1)[:, None] + np.arange(7) + episode), atol=1e-6
        )
        assert "without its last step" in got.source
    action_free = open_source(root, ImportOptions(action_free=True, proprio=(), **SAID))
    assert [item.length for item in action_free.items] == [6, 7, 5]


def test_rlds_import_scales_cameras_of_different_sizes(tmp_path: Path) -> None:
    wrist = [png(p) for p in numbered(range(6), 16, 32)]
    root = dataset(tmp_path / "d", [[example(0, 6, **{"steps/observation/wrist": wrist})]])
    features = json.loads((root / "features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    observation = steps["observation"]["featuresDict"]["features"]
    observation["wrist"] = {"image": {"shape": {"dimensions": ["16", "32", "3"]}}}
    (root / "features.json").write_text(json.dumps(features))
    _, episodes, left_out = imported(root, tmp_path / "store", image_size=(32, 64), **SAID)
    assert left_out == []
    for frames in episodes["episode_000000"].frames.values():
        assert (numbers_of(frames), frames.shape[1:3]) == ([0, 1, 2, 3, 4], (32, 64))


def test_rlds_import_names_files_and_episodes_that_were_not_copied(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [[example(number, 6)] for number in range(3)])
    info = {"name": "lift_demos", "splits": [{"name": "train", "shardLengths": ["1", "1", "2"]}]}
    (root / "dataset_info.json").write_text(json.dumps(info))
    assert open_source(root, ImportOptions(**SAID)).problems == [
        "d: dataset_info.json names 4 episodes, 3 are there; copy the others"
    ]
    (root / "lift_demos-train.tfrecord-00001-of-00003").unlink()
    assert open_source(root, ImportOptions(**SAID)).problems == [
        "d: it lacks lift_demos-train.tfrecord-00001-of-00003; copy what is missing"
    ]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"steps/action": np.zeros((5, 7), np.float32)}, "steps/action has 5 steps, the pictures 6"),
        (
            {"steps/action": np.full((6, 7), np.nan, np.float32)},
            "steps/action holds a value that is not a number",
        ),
        ({"steps/action": np.zeros(40, np.float32)}, "40 values, which are no rows of 7"),
        ({"steps/observation/image": [b""] * 6}, "pictures are missing"),
        ({"steps/observation/image": [b"\xff\xd8\xff\xe0 the half of a JPEG"] * 6}, "bytes is cut short"),
        ({"steps/language_instruction": [b"a", b"b"] * 3}, "its steps name 2 sentences (a; b)"),
    ],
)
def test_rlds_import_omits_a_faulty_episode_by_name(
    tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    root = dataset(tmp_path / "d", [[example(0, 6), example(1, 6, **changed), example(2, 6)]])
    source, episodes, _ = imported(root, tmp_path / "store", **SAID)
    assert sorted(episodes) == ["episode_000000", "episode_000002"]
    assert source.problems[0].startswith("lift_demos, episode_000001: ")
    assert problem in source.problems[0]


def test_rlds_import_omits_damaged_records_and_reports_a_truncated_file(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [[example(0, 6), example(1, 6)], [example(2, 6), example(3, 6)]])
    first, second = sorted(root.glob("*.tfrecord*"))
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(bytes(data))
    second.write_bytes(second.read_bytes()[:-100])
    source, episodes, _ = imported(root, tmp_path / "store", **SAID)
    assert sorted(episodes) == ["episode_000001", "episode_000002"]
    assert any(
        "the record at byte 0 of lift_demos-train.tfrecord-00000-of-00002 is damaged" in problem
        for problem in source.problems
    )
    assert any("the file ends 100 bytes before its record does" in problem for problem in source.problems)


def test_rlds_import_asks_for_task_rate_and_action(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [[example(0, 6)]])
    assert "say it with --task" in open_source(root, ImportOptions(hz=5)).questions[0]
    with pytest.raises(SourceError, match="say it with --hz"):
        open_source(root, ImportOptions(task="Lift"))
    with pytest.raises(SourceError, match="say which is the action with --action"):
        open_source(root, ImportOptions(action="joint_velocity", **SAID))
    with pytest.raises(SourceError, match="--mask, --arm-only cannot be applied to RLDS"):
        open_source(root, ImportOptions(mask="train", arm_only=True, **SAID))
