"""Datasets that the LeRobot package writes, edits and reads, for `data/test_lerobot_package.py`.

This module runs in the environment that `make lerobot` makes, and imports nothing of this project:

    .venv-lerobot/bin/python tests/helpers/lerobot_cli.py write FOLDER
        writes the datasets FOLDER/<name>
    .venv-lerobot/bin/python tests/helpers/lerobot_cli.py edit DATASET FOLDER
        deletes an episode, splits and merges: FOLDER/<name>
    .venv-lerobot/bin/python tests/helpers/lerobot_cli.py read DATASET NPZ
        saves what LeRobot reads of every episode

`write` and `edit` save what LeRobot reads of each dataset as <name>.npz in the same folder. Its arrays are
called `<episode>/<feature>`: pictures (L, H, W, 3), vectors (L, D), `timestamp` (L,) and `task` (L,).
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets import dataset_tools as tools
from lerobot.datasets.lerobot_dataset import LeRobotDataset

TOP, WRIST, DEPTH = "observation.images.top", "observation.images.wrist", "observation.images.depth"
STATE, ACTION = "observation.state", "action"
SENTENCES = ("lift the cube", "open the drawer", "schließe die Schublade")
JOINTS = [f"joint_{i}.pos" for i in range(6)]
H264, HEVC = RGBEncoderConfig(vcodec="h264", g=12), RGBEncoderConfig(vcodec="hevc")


def vector(
    width: int, names: Any = None, dtype: str = "float32", shape: tuple[int, ...] = ()
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or (width,), "names": names}


def camera(dtype: str = "video", height: int = 64, width: int = 96) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (height, width, 3), "names": ["height", "width", "channels"]}


ROBOT = {STATE: vector(6, JOINTS), ACTION: vector(6, JOINTS)}


def picture(height: int, width: int, seed: int, time: int) -> np.ndarray:
    """Return (H, W, 3): a gradient and a square that moves, so that no two frames of a dataset are alike."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x + 5 * time, 3 * y + 40 * seed, x + y + 11 * time], -1) % 256
    left = 4 * time % (width - 16)
    image[8:24, left : left + 16] = (250, 30 * seed % 256, 10)
    return image.astype(np.uint8)


def record(dataset: LeRobotDataset, lengths: Iterable[int], task: Callable[[int, int], str]) -> None:
    """Add episodes as a recorder does. `task`: the sentence of a frame, by episode and frame number."""
    rng = np.random.default_rng(dataset.meta.total_frames)
    for length in lengths:
        episode = dataset.meta.total_episodes
        for time in range(length):
            frame: dict[str, Any] = {"task": task(episode, time)}
            for number, (key, feature) in enumerate(dataset.features.items()):
                shape = tuple(feature["shape"])
                if key == DEPTH:
                    frame[key] = (picture(*shape[:2], episode, time)[..., :1].astype(np.uint16) * 10) + 200
                elif feature["dtype"] in ("video", "image"):
                    channels_first = shape[0] == 3
                    height, width = shape[1:] if channels_first else shape[:2]
                    shown = picture(height, width, episode + 3 * number, time)
                    frame[key] = shown.transpose(2, 0, 1) if channels_first else shown
                elif key in (STATE, ACTION):
                    frame[key] = rng.normal(size=shape).astype(feature["dtype"])
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()


def one_sentence(episode: int, time: int) -> str:
    return SENTENCES[0]


def sentence_per_episode(episode: int, time: int) -> str:
    return SENTENCES[episode % len(SENTENCES)]


def changing_sentence(episode: int, time: int) -> str:
    return SENTENCES[time // 5 % 2] if episode == 1 else SENTENCES[0]


class Folder:
    """Datasets in a folder, each with an archive of what LeRobot reads."""

    def __init__(self, root: Path):
        self.root = root

    def recorded(
        self,
        name: str,
        features: dict[str, Any],
        fps: int = 10,
        lengths: Iterable[int] = (10, 14, 7),
        task: Callable[[int, int], str] = one_sentence,
        limits: dict[str, Any] | None = None,
        **options: Any,
    ) -> LeRobotDataset:
        dataset = LeRobotDataset.create(
            f"local/{name}", fps, features, root=self.root / name, robot_type="so101", **options
        )
        if limits:
            dataset.meta.update_chunk_settings(**limits)
        record(dataset, lengths, task)
        return self.opened(name)

    def opened(self, name: str) -> LeRobotDataset:
        """Open a dataset from disk, and save what was read."""
        dataset = opened(self.root / name)
        np.savez(self.root / f"{name}.npz", **contents(dataset))
        return dataset


def opened(path: Path) -> LeRobotDataset:
    return LeRobotDataset(f"local/{path.name}", root=path, video_backend="pyav", return_uint8=True)


def contents(dataset: LeRobotDataset) -> dict[str, np.ndarray]:
    """Read every row of a dataset as its users do, by index."""
    rows: dict[str, list[Any]] = {}
    for i in range(len(dataset)):
        row = dataset[i]
        episode = int(row["episode_index"])
        for key, feature in dataset.features.items():
            if key in (STATE, ACTION):
                rows.setdefault(f"{episode}/{key}", []).append(np.asarray(row[key]).reshape(-1))
            elif key != DEPTH and feature["dtype"] in ("video", "image"):
                # bytes from a video; from an image file, bytes / 255
                shown = np.asarray(row[key]).transpose(1, 2, 0)
                rows.setdefault(f"{episode}/{key}", []).append(
                    shown if shown.dtype == np.uint8 else np.round(shown * 255).astype(np.uint8)
                )
        rows.setdefault(f"{episode}/timestamp", []).append(float(row["timestamp"]))
        rows.setdefault(f"{episode}/task", []).append(row["task"])
    return {key: np.asarray(values) for key, values in rows.items()}


def write(root: Path) -> None:
    folder = Folder(root)

    # As recorders write them.
    video = folder.recorded("video", {TOP: camera(), **ROBOT}, fps=30, task=sentence_per_episode)
    image = folder.recorded("image", {TOP: camera("image"), **ROBOT}, task=sentence_per_episode)
    two_cameras = folder.recorded(
        "two_cameras",
        {TOP: camera(), WRIST: camera(), **ROBOT},
        fps=15,
        rgb_encoder=H264,
        task=sentence_per_episode,
    )
    folder.recorded("hevc", {TOP: camera(), STATE: vector(3), ACTION: vector(2)}, rgb_encoder=HEVC)
    folder.recorded("video_and_image", {TOP: camera(), WRIST: camera("image"), **ROBOT}, rgb_encoder=H264)
    folder.recorded(
        "streamed",
        {TOP: camera(), **ROBOT},
        fps=30,
        rgb_encoder=H264,
        streaming_encoding=True,
        encoder_queue_maxsize=100,
    )
    folder.recorded(
        "names_in_dictionary",
        {TOP: camera(), STATE: vector(6, {"motors": JOINTS}), ACTION: vector(6, {"motors": JOINTS})},
    )
    folder.recorded(
        "single_values", {TOP: camera(), STATE: vector(1), ACTION: vector(1, ["speed"])}, rgb_encoder=H264
    )
    folder.recorded(
        "matrix_and_doubles",
        {TOP: camera("image"), STATE: vector(0, shape=(2, 3)), ACTION: vector(6, JOINTS, "float64")},
    )
    channels_first = {"shape": (3, 64, 96), "names": ["channels", "height", "width"]}
    folder.recorded(
        "channels_first",
        {TOP: {"dtype": "image", **channels_first}, WRIST: {"dtype": "video", **channels_first}, **ROBOT},
    )
    depth = {
        "dtype": "video",
        "shape": (64, 96, 1),
        "names": ["height", "width", "channels"],
        "info": {"is_depth_map": True},
    }
    folder.recorded(
        "depth", {TOP: camera(), DEPTH: depth, **ROBOT}, rgb_encoder=H264, depth_encoder=DepthEncoderConfig()
    )
    folder.recorded("changing_sentence", {TOP: camera(), **ROBOT}, task=changing_sentence, rgb_encoder=H264)
    small = {"chunks_size": 2, "data_files_size_in_mb": 0.001, "video_files_size_in_mb": 0.004}
    many = folder.recorded(
        "many_files",
        {TOP: camera(), **ROBOT},
        fps=15,
        lengths=(10, 14, 7, 9, 12),
        limits=small,
        rgb_encoder=H264,
    )
    many_images = folder.recorded(
        "many_image_files", {TOP: camera("image"), **ROBOT}, limits=small, lengths=(10, 14, 7, 9, 12)
    )
    folder.recorded("resumed", {TOP: camera(), **ROBOT}, rgb_encoder=H264)
    record(
        LeRobotDataset.resume("local/resumed", root=root / "resumed", rgb_encoder=H264),
        (8, 9),
        sentence_per_episode,
    )
    folder.opened("resumed")

    # As LeRobot's own tools leave them.
    for source, name in (
        (video, "video"),
        (image, "image"),
        (two_cameras, "two_cameras"),
        (many, "many_files"),
        (many_images, "many_image_files"),
    ):
        tools.delete_episodes(source, [1], root / f"{name}_deleted")
        folder.opened(f"{name}_deleted")
    tools.split_dataset(two_cameras, {"two_cameras_train": [0, 2], "two_cameras_val": [1]}, root)
    folder.opened("two_cameras_train")
    folder.opened("two_cameras_val")
    other = folder.recorded(
        "other_two_cameras",
        {TOP: camera(), WRIST: camera(), **ROBOT},
        fps=15,
        rgb_encoder=H264,
        lengths=(6, 11),
    )
    tools.merge_datasets([two_cameras, other], "local/merged", root / "merged")
    folder.opened("merged")
    tools.merge_datasets(
        [two_cameras, other],
        "local/merged_apart",
        root / "merged_apart",
        concatenate_videos=False,
        concatenate_data=False,
    )
    folder.opened("merged_apart")
    tools.merge_datasets(
        [opened(root / "many_files_deleted"), many], "local/deleted_and_merged", root / "deleted_and_merged"
    )
    folder.opened("deleted_and_merged")
    reward = (np.zeros((two_cameras.num_frames, 1), np.float32), vector(1))
    tools.add_features(two_cameras, {"reward": reward}, root / "feature_added")
    folder.opened("feature_added")
    tools.remove_feature(two_cameras, WRIST, root / "camera_removed")
    folder.opened("camera_removed")
    tools.convert_image_to_video_dataset(
        image, root / "image_to_video", "local/image_to_video", rgb_encoder=H264, num_workers=1
    )
    folder.opened("image_to_video")
    tools.merge_datasets([two_cameras], "local/reencoded", root / "reencoded")
    tools.reencode_dataset(opened(root / "reencoded"), rgb_encoder=HEVC)
    folder.opened("reencoded")
    tools.merge_datasets([two_cameras], "local/tasks_modified", root / "tasks_modified")
    tools.modify_tasks(
        opened(root / "tasks_modified"), new_task="tidy up", episode_tasks={1: "put the cup away"}
    )
    folder.opened("tasks_modified")


def edit(path: Path, root: Path) -> None:
    folder, source = Folder(root), opened(path)
    tools.delete_episodes(source, [1], root / "deleted")
    folder.opened("deleted")
    tools.split_dataset(source, {"first": [0], "rest": [1, 2]}, root)
    parts = [folder.opened("rest"), folder.opened("first")]
    tools.merge_datasets(parts, "local/merged", root / "merged")
    tools.delete_episodes(folder.opened("merged"), [1], root / "merged_and_deleted")
    folder.opened("merged_and_deleted")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["write", "edit", "read"])
    parser.add_argument("paths", nargs="+", type=Path)
    asked = parser.parse_args()
    if asked.what == "write":
        write(*asked.paths)
    elif asked.what == "edit":
        edit(*asked.paths)
    else:
        path, archive = asked.paths
        np.savez(archive, **contents(opened(path)))


if __name__ == "__main__":
    main()
