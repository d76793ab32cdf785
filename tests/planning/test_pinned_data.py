"""Plan, estimate and store check of a sweep that ran: they count the episodes that its next run reads."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.planning.cost_estimate import work_of
from orchestrator.planning.microbenchmark import _jobs
from orchestrator.planning.plan import make_plan, planned_videos
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Eight episodes of Lift, all of different lengths."""
    storage = open_storage(str(tmp_path / "store"))
    commit(
        storage,
        CONTRACT,
        [put_episode(storage, make_episode(seed, length=20 + seed), 20.0) for seed in range(8)],
    )
    return storage.uri


def sweep(store: str, **data: object) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "quarantining",
            "data": {
                "episodes": store,
                "demo_count": [2, 3],
                "action_free_ratio": [1.0],
                "on_corrupt": "quarantine",
                **data,
            },
            "train": {"mode": "two_stage", "steps": 100, "checkpoint_every": 50, "batch_size": 4},
            "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 40, "settle": 4},
            "storage": f"{store}-runs",
        }
    )


def quarantine(swept: SweepConfig) -> SweepState:
    """Damage a demo of every arm; return the sweep after the check of its episodes."""
    state = SweepState.open(swept, pin=True)
    victim = state.subset(min(swept.grid())).demos[0]
    path = Path(swept.data.episodes.removeprefix("file://")) / state.manifest[victim].key
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    checked = state.without_damaged(lambda done, todo: None)
    assert list(checked.quarantined) == [victim]
    return checked


def test_plan_and_estimate_count_the_episodes_of_the_jobs_after_a_quarantine(store: str) -> None:
    swept = sweep(store)
    before = make_plan(swept)
    state = quarantine(swept)
    manifest, quarantined = state.manifest, PinnedData.read(swept).quarantined.keys()
    largest = state.job(swept.largest()).subset
    assert make_plan(swept).bytes_per_epoch == sum(e.nbytes for e in manifest.select(largest.episodes))
    assert make_plan(swept).bytes_per_epoch != before.bytes_per_epoch
    jobs = [state.job(arm) for arm in swept.grid()]
    work = work_of(swept, manifest, quarantined)
    assert [(each.episodes, each.clips, each.nbytes) for each in work.arms] == [
        (len(read), sum(e.length for e in read), sum(e.nbytes for e in read))
        for job in jobs
        for read in [manifest.select(job.subset.demos)]
    ]
    videos = {job.arm_id: job.subset.episodes for arm in swept.grid() if (job := state.stage_one(arm))}
    assert [video.episodes for video in planned_videos(swept, manifest, quarantined)] == list(videos.values())
    measured = _jobs(swept, manifest, state.version, quarantined, frozenset(), state.episodes)
    assert measured["action"].subset == largest


def test_pinned_data_without_quarantine_excludes_no_episode(store: str) -> None:
    quarantine(sweep(store))
    assert PinnedData.read(sweep(store, on_corrupt="stop")) == PinnedData(1, {})


def test_store_check_excludes_quarantined_episodes(store: str) -> None:
    swept = sweep(store)
    quarantine(swept)
    with pytest.raises(SweepError, match=r"the store has 7 episodes.*; 1 are set aside as damaged"):
        make_plan(sweep(store, demo_count=[4]))
    assert make_plan(sweep(store, demo_count=[4]).model_copy(update={"name": "another"})).arms == 1


def test_plan_is_of_the_pinned_data_version(store: str) -> None:
    swept = sweep(store)
    storage = open_storage(store)
    assert PinnedData.read(swept) == PinnedData(None, {})
    state = SweepState.open(swept, pin=True)
    commit(storage, CONTRACT, [put_episode(storage, make_episode(99), 20.0)])
    assert make_plan(swept).store_episodes == len(state.manifest) == 8
    assert make_plan(swept.model_copy(update={"name": "another"})).store_episodes == 9
    assert len(load_manifest(storage)) == 9


def test_sweep_state_selects_the_episodes_of_an_arm_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.config import sweep_config as module

    selected = []
    select = module.select_episodes

    def counted(*arguments: object) -> object:
        selected.append(arguments[1])
        return select(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "select_episodes", counted)
    state = SweepState.open(sweep(store), pin=True)
    for arm in state.sweep.grid():
        assert state.job(arm).subset is state.subset(arm)
        state.stage_one(arm)
        state.arm_state(arm)
    state.used()
    assert len(selected) == len(set(selected))
    again = replace(state, quarantined={"another": "a flipped bit"})
    again.subset(state.sweep.largest())
    assert len(selected) == len(set(selected)) + 1, "other quarantined episodes are another selection"
