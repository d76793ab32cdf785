"""The dry run of an import announces exactly what the import does, for any layout and faulty episodes."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_datasets import numbered, write_film
from mcap_recordings import raw, ros2
from orchestrator.data.import_episodes import Importer, LeftOut, missing
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source
from orchestrator.storage.base import open_storage

VECTORS = (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2))


def hdf5(path: Path, lengths: list[int], faults: list[str]) -> tuple[Path, ImportOptions]:
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        kwargs = {"robots": ["Panda"], "control_freq": 20}
        file.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
        )
        for number, (length, fault) in enumerate(zip(lengths, faults, strict=True)):
            demo = file.create_group(f"data/demo_{number}")
            width = 6 if fault == "width" else 7
            demo["actions"] = np.full((length, width), np.nan if fault == "number" else 0.5)
            for key, values in VECTORS:
                demo[f"obs/{key}"] = np.ones((length + (fault == "length"), values))
            if fault == "absent":
                demo.create_dataset(
                    "obs/agentview_image", (length, 32, 64, 3), np.uint8, chunks=(1, 32, 64, 3)
                )
            else:
                demo["obs/agentview_image"] = numbered(range(length))
    return path.with_suffix(".hdf5"), ImportOptions(images="upright")


def replay_buffer(path: Path, lengths: list[int], faults: list[str]) -> tuple[Path, ImportOptions]:
    rows, ends = sum(lengths), np.cumsum(lengths)
    action = np.full((rows, 2), 0.5, np.float32)
    group = zarr.open_group(str(path.with_suffix(".zarr")), mode="w", zarr_format=2)
    for end, length, fault in zip(ends, lengths, faults, strict=True):
        action[end - length : end] = np.nan if fault == "number" else 0.5
    for name, values in (
        ("img", numbered([i % 256 for i in range(rows)])),
        ("state", np.ones((rows, 3), np.float32)),
        ("action", action),
    ):
        group.create_array(f"data/{name}", data=values, chunks=(1, *values.shape[1:]))
    group.create_array("meta/episode_ends", data=ends)
    for end, fault in zip(ends, faults, strict=True):
        if fault in ("absent", "length", "width"):
            (
                path.with_suffix(".zarr")
                / "data"
                / {"absent": "img/{}.0.0.0", "length": "state/{}.0", "width": "action/{}.0"}[fault].format(
                    end - 1
                )
            ).unlink()
    return path.with_suffix(".zarr"), ImportOptions(
        task="PushT", instruction="push the T", hz=10, proprio=("state",)
    )


def films(path: Path, lengths: list[int], faults: list[str]) -> tuple[Path, ImportOptions]:
    for number, (length, fault) in enumerate(zip(lengths, faults, strict=True)):
        file = write_film(
            path / f"pick/{number}.mp4",
            numbered(range(length)),
            10,
            moments=[i if i < 4 else i + 4 for i in range(length)] if fault == "absent" else None,
        )
        if fault in ("number", "width"):
            file.write_bytes(b"no film")
    return path, ImportOptions(cameras={"front": "front"}, task="pick")


def mcap(path: Path, lengths: list[int], faults: list[str]) -> tuple[Path, ImportOptions]:
    for number, (length, fault) in enumerate(zip(lengths, faults, strict=True)):
        file = path / f"{number}.mcap"
        with ros2(file) as write:
            for i in range(length):
                second = (i + 4 * (fault == "absent" and i > 1)) / 10
                values = [np.nan if fault == "number" else 0.5] * (6 if fault == "width" and i == 1 else 7)
                write("/front/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], second), second)
                write("/arm", "std_msgs/msg/Float64MultiArray", {"data": values}, second)
        if fault == "length":
            file.write_bytes(file.read_bytes()[:-100])
    return path, ImportOptions(task="pick", instruction="pick it", hz=10, proprio=("/arm",), action="/arm")


@pytest.mark.parametrize("write", [hdf5, replay_buffer, films, mcap])
@settings(max_examples=12)
@given(
    episodes=st.lists(
        st.tuples(
            st.integers(2, 9), st.sampled_from(["none", "none", "number", "width", "length", "absent"])
        ),
        min_size=1,
        max_size=5,
    )
)
def test_import_dry_run_announces_what_the_import_does(
    tmp_path_factory: pytest.TempPathFactory,
    write: Callable[[Path, list[int], list[str]], tuple[Path, ImportOptions]],
    episodes: list[tuple[int, str]],
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    path, reading = write(
        folder / "source", [length for length, _ in episodes], [fault for _, fault in episodes]
    )
    source = None
    with suppress(SourceError):
        source = open_source(path, reading)
    if source is None:
        assert "none" not in [fault for _, fault in episodes], (
            "a source is refused as a whole if all of its episodes are bad"
        )
        return
    storage = open_storage(str(folder / "store"))
    importer = Importer(source, storage.uri)
    announced = missing(source, storage)
    answers: list[Any] = [importer.record(item) for item in announced]
    assert not [answer for answer in answers if isinstance(answer, LeftOut)]
    assert [answer.length for answer in answers] == [item.length for item in announced]
    assert len(announced) + len(source.problems) == len(episodes)
