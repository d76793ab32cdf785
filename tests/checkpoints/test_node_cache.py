"""Checkpoints on a node's own disk: fetched once, whole or not at all, and the oldest go."""

import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.checkpoints.node_cache import cached_checkpoint
from orchestrator.checkpoints.reader import fetch
from policy.checkpoint import CheckpointError, fingerprint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Makes the folder of a checkpoint, of 10 kB that act and 20 kB that do not; its URI and fingerprint."""

    def make(name: str) -> tuple[str, str]:
        folder = tmp_path / "arms" / name
        (folder / "unet").mkdir(parents=True)
        (folder / "checkpoint.json").write_text(name)
        (folder / "unet" / "w.safetensors").write_bytes(os.urandom(10_000 - len(name)))
        (folder / "trainer.safetensors").write_bytes(bytes(20_000))
        return str(folder), fingerprint(folder)

    return make


def test_eight_servers_of_a_node_fetch_once_what_acts(
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


def test_other_weights_than_those_to_be_scored_are_refused(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    uri, expected = checkpoint("one")
    Path(uri, "unet", "w.safetensors").write_bytes(b"trained again")
    sentence = (
        f"{re.escape(uri)}: the checkpoint there is {fingerprint(Path(uri))}, not {expected}, which is to be"
        " scored: replaced, or damaged"
    )
    with pytest.raises(CheckpointError, match=sentence):
        cached_checkpoint(uri, expected, tmp_path / "node")
    assert not (tmp_path / "node" / expected).exists()


def test_a_fetch_that_breaks_off_leaves_nothing_that_is_taken_for_whole(
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


def test_the_one_used_longest_ago_goes_and_one_in_use_stays(
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
    ], "one had to go for three, another for four"
    folders.append(cached_checkpoint(*made[0], node, most_bytes=15_000))
    assert all(folder.is_dir() for folder in folders[2:]), "all three were asked for within ten minutes"


def test_what_a_killed_process_left_half_done_goes(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    for name in (".part-fetched", ".part-deleted"):
        (node / name).mkdir(parents=True)
    used(node / ".part-fetched", 5000)
    cached_checkpoint(*checkpoint("one"), node)
    assert [(node / name).is_dir() for name in (".part-fetched", ".part-deleted")] == [
        False,
        True,
    ], "one may be at work still"


def test_a_disk_that_is_nearly_full_keeps_fewer(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5_000}))
    node = tmp_path / "node"
    first = cached_checkpoint(*checkpoint("one"), node)
    used(first, 5000)
    assert cached_checkpoint(*checkpoint("two"), node).is_dir()
    assert not first.is_dir()


def test_a_folder_of_somebody_else_is_refused(
    checkpoint: Callable[[str], tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CheckpointError, match="belongs to user"):
        cached_checkpoint(*checkpoint("one"), tmp_path / "node")
