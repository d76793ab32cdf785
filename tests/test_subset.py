"""Which episodes an arm gets: nested, seeded, disjoint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.episodes import EpisodeEntry
from orchestrator.data.subset import SubsetError, choose, num_action_free
from policy.stats import Stats

STATS = Stats.of(np.zeros((1, 2)))


def entries(count: int, task: str = "Lift", labelled: bool = True) -> list[EpisodeEntry]:
    kind = "" if labelled else "video-"
    return [
        EpisodeEntry(f"{task}-{kind}{i:04d}", "", 0, "", 10, task, "", labelled, True, "", STATS, STATS if labelled else None) for i in range(count)
    ]


sizes = st.tuples(
    st.integers(1, 15), st.integers(1, 15), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 9)
)


@given(sizes)
def test_fewer_demos_are_always_among_more(size: tuple[int, int, float, float, int]) -> None:
    a, b, r, q, seed = size
    store = entries(60) + entries(60, "Stack")
    small, large = choose(store, min(a, b), min(r, q), seed), choose(store, max(a, b), max(r, q), seed)
    assert set(small.demos) <= set(large.demos)
    assert set(small.action_free) <= set(large.action_free)


@given(sizes)
def test_no_episode_is_both_demo_and_action_free(size: tuple[int, int, float, float, int]) -> None:
    demos, _, ratio, _, seed = size
    subset = choose(entries(60), demos, ratio, seed)
    assert not set(subset.demos) & set(subset.action_free)
    assert len(subset.demos) == demos
    assert len(subset.action_free) == num_action_free(demos, ratio)


@given(st.randoms(use_true_random=False), st.integers(0, 9))
def test_the_choice_does_not_depend_on_the_order_of_the_manifest(random, seed: int) -> None:  # type: ignore[no-untyped-def]
    store = entries(30)
    shuffled = random.sample(store, len(store))
    assert choose(store, 7, 1.0, seed) == choose(shuffled, 7, 1.0, seed)
    assert choose(store, 7, 1.0, seed).digest == choose(shuffled, 7, 1.0, seed).digest


def test_seeds_choose_differently() -> None:
    store = entries(60)
    assert len({choose(store, 10, 0, seed).demos for seed in range(10)}) == 10


def test_every_task_gets_the_same_number() -> None:
    subset = choose(entries(20) + entries(30, "Stack"), 5, 1.0, 0)
    assert sum(i.startswith("Lift") for i in subset.demos) == sum(i.startswith("Stack") for i in subset.demos) == 5


def test_recordings_without_actions_are_used_first_as_action_free_and_never_as_demos() -> None:
    subset = choose(entries(10) + entries(5, labelled=False), 10, 0.5, 0)
    assert all("video" in episode for episode in subset.action_free)
    assert not any("video" in episode for episode in subset.demos)


@pytest.mark.parametrize(("demos", "ratio"), [(11, 0.0), (6, 1.0)])
def test_a_pool_too_small_says_the_task_and_the_numbers(demos: int, ratio: float) -> None:
    with pytest.raises(SubsetError, match=f"Lift: {demos} demos .* the store has 10 episodes, 10 of them with actions"):
        choose(entries(10), demos, ratio, 0)
