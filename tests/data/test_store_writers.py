"""Several writers of one store at once, and writers killed at any moment: nothing is lost or partly
visible.
"""

import random
import time

import pytest
from conftest import KILLED_STORAGES, SHARED_STORAGES

from orchestrator.data.episode_format import decode
from orchestrator.data.episode_store import fetch, latest_version, load_manifest
from orchestrator.storage.base import Storage
from orchestrator.testing.episodes import CAMERA
from writer_processes import line, start, writer

WRITER = """
import sys
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode

storage = open_storage(sys.argv[1])
episodes = [make_episode(seed) for seed in range(int(sys.argv[2]), int(sys.argv[3]))]
storage.list("")
print("ready", flush=True)
sys.stdin.readline()
for one in episodes:
    commit(storage, CONTRACT, [put_episode(storage, one, 20.0)])
    print(one.episode_id, flush=True)
"""


def seeds_in(storage: Storage) -> set[int]:
    """Return the seeds that a reader sees: every version loads, holds all of the one before, and all its
    episodes are whole.
    """
    before: set[str] = set()
    newest = latest_version(storage)
    assert storage.list("versions/") == [f"versions/{number:06d}.json" for number in range(1, newest + 1)]
    for number in range(1, newest + 1):
        ids = set(load_manifest(storage, number).episode_ids)
        assert before < ids
        before = ids
    for entry in load_manifest(storage).entries if newest else ():
        decode(fetch(storage, entry), (CAMERA,), with_actions=True)
    return {int(episode_id.rpartition("-")[2]) for episode_id in before}


@pytest.mark.parametrize("storage", SHARED_STORAGES, indirect=True)
def test_store_with_two_writers_at_once_loses_nothing(storage: Storage) -> None:
    processes = writer(WRITER, storage, 0, 8), writer(WRITER, storage, 8, 16)
    start(*processes)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert seeds_in(storage) == set(range(16))
    assert latest_version(storage) == 16


@pytest.mark.parametrize("storage", KILLED_STORAGES, indirect=True)
def test_store_of_a_killed_writer_is_whole_and_completed_by_another_run(storage: Storage) -> None:
    rng = random.Random(0)
    seen: set[int] = set()
    for _ in range(2):
        processes = writer(WRITER, storage, 0, 12), writer(WRITER, storage, 6, 18)
        start(*processes)
        for process in processes:
            for _ in range(rng.randrange(3)):
                line(process)  # one more episode is in
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.wait()
        now = seeds_in(storage)
        assert now >= seen
        seen = now
    assert 0 < len(seen) < 18
    assert not [key for key in storage.list("") if not key.endswith((".parquet", ".json", "probe"))]
    last = writer(WRITER, storage, 0, 18)
    start(last)
    assert last.wait(60) == 0
    assert seeds_in(storage) == set(range(18))
