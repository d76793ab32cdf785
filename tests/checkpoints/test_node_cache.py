"""The node cache fetches a checkpoint once, whole or not at all, and evicts the oldest."""

import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from orchestrator.checkpoints.node_cache import cached_checkpoint
from orchestrator.checkpoints.reader import fetch
from policy.checkpoint import CheckpointError, fingerprint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Yield a factory of checkpoint folders, with 10 kB that act and 20 kB that do not; it returns URI and
    fingerprint.
    """

    def make(name: str) -> tuple[str, str]:
        folder = tmp_path / "arms" / name
        (folder / "unet").mkdir(parents=True)
        (folder / "checkpoint.json").write_text(name)
        (folder / "unet" / "w.safetensors").write_bytes(os.urandom(10_000 - len(name)))
        (folder / "trainer.safetensors").write_bytes(bytes(20_000))
        return str(folder), fingerprint(folder)

    return make


def test_cached_checkpoint_from_eight_threads_fetches_the_acting_files_once(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    uri, expected = checkpoint("one")
    fetched: list[int] = []

    def slow(uri: str, folder: Path) -> None:
        fetch(uri, folder)
        time.sleep(0.2)
        fetched.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))

    with ThreadPoolExecutor(8) as servers:
        folders = {
            *servers.map(lambda _: cached_checkpoint(uri, expected, tmp_path / "node", fetch=slow), range(8))
        }
    (folder,) = folders
    assert fetched == [10_000], "without this: 80,000 bytes"
    assert fingerprint(folder) == expected
    cached_checkpoint(uri, expected, tmp_path / "another", fetch=slow)
    assert len(fetched) == 2


def test_cached_checkpoint_with_another_fingerprint_raises(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    uri, expected = checkpoint("one")
    Path(uri, "unet", "w.safetensors").write_bytes(b"trained again")
    sentence = (
        f"{re.escape(uri)}: the checkpoint has the fingerprint {fingerprint(Path(uri))}, expected is"
        f" {expected}: it was replaced or damaged"
    )
    with pytest.raises(CheckpointError, match=sentence):
        cached_checkpoint(uri, expected, tmp_path / "node")
    assert not (tmp_path / "node" / expected).exists()


def test_cached_checkpoint_after_an_interrupted_fetch_is_fetched_whole(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    uri, expected = checkpoint("one")

    def breaks(uri: str, folder: Path) -> None:
        fetch(uri, folder)
        (folder / "unet" / "w.safetensors").unlink()
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cached_checkpoint(uri, expected, tmp_path / "node", fetch=breaks)
    assert fingerprint(cached_checkpoint(uri, expected, tmp_path / "node")) == expected


def used(folder: Path, ago_s: float) -> None:
    os.utime(folder, (time.time() - ago_s,) * 2)


def test_node_cache_evicts_the_least_recently_used_and_keeps_those_in_use(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    node, made = tmp_path / "node", [checkpoint(name) for name in ("one", "two", "three", "four")]
    folders = [cached_checkpoint(*one, node, most_bytes=15_000) for one in made[:2]]
    used(folders[0], 5000)
    used(folders[1], 4000)
    folders += [cached_checkpoint(*one, node, most_bytes=15_000) for one in made[2:]]
    assert [folder.is_dir() for folder in folders] == [
        False,
        False,
        True,
        True,
    ], "three evicts one, four another"
    folders.append(cached_checkpoint(*made[0], node, most_bytes=15_000))
    assert all(folder.is_dir() for folder in folders[2:]), "all three were asked for within ten minutes"


def test_node_cache_removes_parts_of_killed_processes_and_no_slow_fetch(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    parts = [node / name for name in (".part-killed-x1", ".part-slow-x2")]
    for part in parts:
        part.mkdir(parents=True)
        used(part, 5000)
    with FileLock(node / "slow.lock"):
        cached_checkpoint(*checkpoint("one"), node)
    assert [part.is_dir() for part in parts] == [False, True]


def test_node_cache_on_a_nearly_full_disk_keeps_fewer_checkpoints(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5_000}))
    node = tmp_path / "node"
    first = cached_checkpoint(*checkpoint("one"), node)
    used(first, 5000)
    assert cached_checkpoint(*checkpoint("two"), node).is_dir()
    assert not first.is_dir()


def test_node_cache_in_a_folder_of_another_user_raises(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CheckpointError, match="belongs to user"):
        cached_checkpoint(*checkpoint("one"), tmp_path / "node")
