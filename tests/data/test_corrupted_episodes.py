"""Hundreds of random corruptions of a store: each is reported with its episode, and none reaches training."""

import random
from pathlib import Path

import pyarrow as pa
import pytest

from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import check_all, commit, load_manifest, put_episode
from orchestrator.data.manifest import Manifest
from orchestrator.data.ray_prefetch import _Fetch
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode
from sim_workers.checkout import file_hashes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Return a store with six episodes in two versions."""
    folder = tmp_path_factory.mktemp("corruption") / "store"
    storage = open_storage(str(folder))
    entries = [
        put_episode(storage, make_episode(seed, length=9, labelled=seed % 2 == 0), 20.0) for seed in range(6)
    ]
    commit(storage, CONTRACT, entries[:3])
    return folder, commit(storage, CONTRACT, entries)


def injured(data: bytes, other: bytes, how: str, rng: random.Random) -> bytes | None:
    """Return the damaged data; None: the file is removed."""
    place = rng.randrange(len(data))
    match how:
        case "bit":
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case "block":
            block = rng.randbytes(min(16, len(data) - place))
            return data[:place] + block + data[place + len(block) :]
        case "truncation":
            return data[:place]
        case "swap":
            return other
        case "longer":
            return data[:place] + b"\0" + data[place:]
    return None


@pytest.mark.parametrize("injuries", [250, pytest.param(1000, marks=pytest.mark.full)])
def test_corrupted_episodes_are_reported_and_never_fetched(
    store: tuple[Path, Manifest], injuries: int
) -> None:
    folder, manifest = store
    storage = open_storage(str(folder))
    rng = random.Random(2508)
    entries = list(manifest.entries)
    objects = {entry.episode_id: folder / entry.key for entry in entries}
    of_version = {
        "versions/000002.json": folder / "versions/000002.json",
        "manifest": folder / f"manifests/{manifest.sha256}.parquet",
    }
    first = load_manifest(storage, 1)
    older = {"versions/000002.json": storage.get("versions/000001.json"), "manifest": first.data}
    whole = {path: path.read_bytes() for path in (*objects.values(), *of_version.values())}
    struck = dict.fromkeys(("bit", "block", "truncation", "swap", "longer", "missing"), 0)
    while sum(struck.values()) < injuries:
        target = rng.choice([*objects, *of_version])
        path = objects.get(target) or of_version[target]
        other = (
            whole[rng.choice([p for p in objects.values() if p != path])]
            if target in objects
            else older[target]
        )
        how = rng.choice(list(struck))
        after = injured(whole[path], other, how, rng)
        if after == whole[path]:
            continue
        struck[how] += 1
        path.unlink()
        if after is not None:
            path.write_bytes(after)
        if target in objects:
            problems = {
                entry.episode_id: problem for entry, problem in check_all(storage, entries, threads=1)
            }
            assert {e for e, problem in problems.items() if problem} == {target}, (target, how)
            assert f"episode {target} is " in problems[target]
            fetching = _Fetch(str(folder), tuple(entries), file_hashes())
            for number, entry in enumerate(entries):
                row = fetching(pa.table({"episode": [number]}))
                data, problem = (row[name][0].as_py() for name in ("data", "problem"))
                assert (data == b"") is (problem != "") is (entry.episode_id == target)
                assert not data or data == whole[objects[entry.episode_id]]
        else:
            with pytest.raises(EpisodeError, match=r"version 2 .*restore (versions|manifests)/"):
                load_manifest(storage, 2)
            assert load_manifest(storage, 1).fingerprint == first.fingerprint, (
                "an older version stays readable"
            )
        path.write_bytes(whole[path])
    assert all(count > injuries / 12 for count in struck.values())
    assert load_manifest(storage).fingerprint == manifest.fingerprint
