"""The clip order: a function of seeds, whole epochs, the requested ratio in every batch, resumable at any
step.
"""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.clip_sampler import CLIPS_PER_VISIT, POOL_VISITS, ClipSampler, Draw
from orchestrator.data.manifest import EpisodeEntry


def entry(number: int, length: int = 20) -> EpisodeEntry:
    return EpisodeEntry(
        f"e{number:03d}", "", 0, 1, "", length, 20.0, (), (64, 64), "Lift", "", True, True, "", None, None
    )


def order(
    demos: int = 5,
    action_free: int = 0,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    lengths: int = 20,
) -> ClipSampler:
    entries = [entry(i, lengths + i % 3) for i in range(demos + action_free)]
    return ClipSampler(
        tuple(entries[:demos]), tuple(entries[demos:]), "0123456789abcdef", seed, rank, world, batch_size
    )


def clips(draws: list[Draw]) -> list[tuple[str, int, bool]]:
    return [(draw.visit.entry.episode_id, draw.start, draw.visit.with_actions) for draw in draws]


def take(which: ClipSampler, count: int, first_step: int = 0) -> list[Draw]:
    return list(islice(which.walk(first_step), count))


@given(st.integers(1, 4), st.integers(1, 4))
def test_clip_sampler_epoch_holds_every_clip_once_over_all_workers(demos: int, world: int) -> None:
    whole = order(demos)
    for epoch in range(2):
        visits = whole._epoch(whole.demos, 0, epoch)
        assert Counter((v.entry.episode_id, start) for v in visits for start in v.starts) == Counter(
            (e.episode_id, start) for e in whole.demos for start in range(e.length)
        )
        dealt = [
            list(islice(order(demos, rank=rank, world=world)._visits(whole.demos, 0), 2 * len(visits)))
            for rank in range(world)
        ]
        endless = [(v.entry.episode_id, v.starts) for visit in zip(*dealt, strict=True) for v in visit]
        assert endless[: len(visits)] == [
            (v.entry.episode_id, v.starts) for v in whole._epoch(whole.demos, 0, 0)
        ]


def test_clip_sampler_mixing_neither_loses_nor_duplicates_clips() -> None:
    which = order(4)
    epoch = sum(e.length for e in which.demos)
    drawn = Counter((episode, start) for episode, start, _ in clips(take(which, 10 * epoch)))
    assert set(drawn) == {(e.episode_id, start) for e in which.demos for start in range(e.length)}
    # A clip waits for less than POOL_VISITS visits, so at any moment counts differ by the epochs those span.
    assert max(drawn.values()) - min(drawn.values()) <= 2 + POOL_VISITS * CLIPS_PER_VISIT // epoch


def test_clip_sampler_order_is_a_function_of_data_seed_rank_and_world() -> None:
    assert clips(take(order(), 300)) == clips(take(order(), 300))
    others = [
        order(seed=1),
        order(rank=1, world=2),
        order(rank=0, world=2),
        ClipSampler(order().demos, (), "fedcba9876543210", 0, 0, 1, 8),
    ]
    assert all(clips(take(other, 300)) != clips(take(order(), 300)) for other in others)


def test_clip_sampler_order_of_demos_does_not_depend_on_the_ratio() -> None:
    alone = clips(take(order(5), 200))
    mixed = [clip for clip in clips(take(order(5, action_free=5), 400)) if clip[2]]
    assert mixed == alone[: len(mixed)]
    assert len(mixed) == 200


@pytest.mark.parametrize("action_free", [0, 5, 10, 15, 3])
def test_clip_sampler_batches_have_the_requested_ratio_within_a_clip(action_free: int) -> None:
    share = 5 / (5 + action_free)
    draws = take(order(5, action_free), 8 * 50)
    for step in range(50):
        labelled = sum(draw.visit.with_actions for draw in draws[8 * step : 8 * step + 8])
        assert abs(labelled - 8 * share) < 1
    assert abs(sum(draw.visit.with_actions for draw in draws) - 400 * share) < 1


def test_clip_sampler_ratio_holds_over_all_workers_together() -> None:
    """Four workers with one clip each per step and three action-free clips per demo: every fourth clip is a
    demo's over all workers, not within each.
    """
    drawn = [take(order(2, 6, rank, 4, batch_size=1), 40) for rank in range(4)]
    for step in range(40):
        assert sum(draws[step].visit.with_actions for draws in drawn) == 1


@given(st.integers(0, 60), st.integers(1, 9))
def test_clip_sampler_resumed_walk_continues_with_the_exact_clips(first_step: int, batch_size: int) -> None:
    which = order(3, action_free=2, batch_size=batch_size)
    whole = take(which, (first_step + 20) * batch_size)
    rest = take(which, 20 * batch_size, first_step)
    assert clips(rest) == clips(whole[first_step * batch_size :])


@given(st.integers(0, 40))
def test_clip_sampler_visits_open_once_and_close_after_their_last_clip(
    first_step: int,
) -> None:
    opened: dict[int, int] = {}
    for draw in take(order(6, action_free=6), 4000, first_step):
        if draw.opens:
            assert id(draw.visit) not in opened
            opened[id(draw.visit)] = 0
        opened[id(draw.visit)] += 1
        if draw.closes:
            del opened[id(draw.visit)]
        assert len(opened) <= 2 * (POOL_VISITS + 1)


def test_clip_sampler_batch_mixes_many_episodes() -> None:
    draws = take(order(40), 8 * 100)
    distinct = [
        len({draw.visit.entry.episode_id for draw in draws[8 * step : 8 * step + 8]})
        for step in range(20, 100)
    ]
    assert sum(distinct) / len(distinct) > 5.5
