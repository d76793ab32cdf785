"""Recorders that hang are replaced, and what others recorded is committed."""

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.episode_store import load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.parallel_writer import RecordTimeoutError, record_all
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode

pytestmark = pytest.mark.ray
LIMIT_S = 30.0  # on a busy machine a process starts within it


def recorder() -> type[Any]:
    """Return a class that Ray sends by value: its worker processes cannot import this module."""

    class Recorder:
        """Records episode `seed`; hangs at the first `hangs[seed]` attempts."""

        def __init__(self, folder: str, hangs: dict[int, int]) -> None:
            self._folder, self._hangs = Path(folder), hangs

        def record(self, seed: int) -> EpisodeEntry:
            attempts = self._folder / f"attempts-{seed}"
            with attempts.open("a") as file:
                file.write("x")
            if len(attempts.read_text()) <= self._hangs.get(seed, 0):
                time.sleep(600)
            return put_episode(open_storage(str(self._folder / "store")), make_episode(seed, 5), 20.0)

    return Recorder


def record(folder: Path, hangs: dict[int, int]) -> list[Any]:
    storage = open_storage(str(folder / "store"))
    arguments = (str(folder), hangs)
    return list(record_all(storage, CONTRACT, recorder(), arguments, [0, 1, 2], 2, "test", limit_s=LIMIT_S))


@pytest.mark.full
def test_recorder_that_hangs_is_restarted_and_named_if_it_always_hangs(
    ray_cluster: None, tmp_path: Path
) -> None:
    """Episode 0 hangs once, episode 1 always; what can be recorded is committed."""
    with pytest.raises(RecordTimeoutError, match=rf"1: not done in 3 attempts of {LIMIT_S:g} s"):
        record(tmp_path, {0: 1, 1: 99})
    assert [(tmp_path / f"attempts-{seed}").read_text() for seed in (0, 1, 2)] == ["xx", "xxx", "x"]
    committed = load_manifest(open_storage(str(tmp_path / "store"))).episode_ids
    assert sorted(committed) == sorted(make_episode(seed, 5).episode_id for seed in (0, 2))
