"""Subset selection: nested, seeded, disjoint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.arms import Arm
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.subset import Labels, Subset, SubsetError, held_out, num_action_free, select_episodes
from orchestrator.testing.episodes import CONTRACT
from policy.feature_stats import Stats

STATS = Stats.of(np.zeros((1, 2)))


def entries(count: int, task: str = "Lift", labelled: bool = True) -> list[EpisodeEntry]:
    kind, action = ("", STATS) if labelled else ("video-", None)
    return [
        EpisodeEntry(
            f"{task}-{kind}{i:04d}",
            "",
            0,
            0,
            "",
            10,
            20.0,
            ("a",),
            (64, 64),
            task,
            "",
            labelled,
            True,
            "",
            STATS,
            action,
        )
        for i in range(count)
    ]


def store_of(*groups: list[EpisodeEntry]) -> Manifest:
    return Manifest.of(CONTRACT, [entry for group in groups for entry in group])


sizes = st.tuples(
    st.integers(1, 15),
    st.integers(1, 15),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 9),
)


@given(sizes)
def test_subset_of_fewer_demos_is_contained_in_one_of_more(size: tuple[int, int, float, float, int]) -> None:
    a, b, r, q, seed = size
    store = store_of(entries(60), entries(60, "Stack"))
    small, large = (
        select_episodes(store, Arm(min(a, b), min(r, q), seed)),
        select_episodes(store, Arm(max(a, b), max(r, q), seed)),
    )
    assert set(small.demos) <= set(large.demos)
    assert set(small.action_free) <= set(large.action_free)


@given(sizes)
def test_subset_demos_and_action_free_episodes_are_disjoint(size: tuple[int, int, float, float, int]) -> None:
    demos, _, ratio, _, seed = size
    subset = select_episodes(store_of(entries(60)), Arm(demos, ratio, seed))
    assert not set(subset.demos) & set(subset.action_free)
    assert len(subset.demos) == demos
    assert len(subset.action_free) == num_action_free(demos, ratio)


@given(st.randoms(use_true_random=False), st.integers(0, 9))
def test_subset_does_not_depend_on_the_order_of_the_manifest(random, seed: int) -> None:  # type: ignore[no-untyped-def]
    listed = entries(30)
    store, shuffled = store_of(listed), store_of(random.sample(listed, len(listed)))
    assert select_episodes(store, Arm(7, 1.0, seed)) == select_episodes(shuffled, Arm(7, 1.0, seed))
    assert (
        select_episodes(store, Arm(7, 1.0, seed)).digest
        == select_episodes(shuffled, Arm(7, 1.0, seed)).digest
    )


def test_subsets_of_different_seeds_differ() -> None:
    store = store_of(entries(60))
    assert len({select_episodes(store, Arm(10, 0, seed)).demos for seed in range(10)}) == 10


def test_subset_has_equally_many_demos_per_task() -> None:
    subset = select_episodes(store_of(entries(20), entries(30, "Stack")), Arm(5, 1.0, 0))
    assert (
        sum(i.startswith("Lift") for i in subset.demos)
        == sum(i.startswith("Stack") for i in subset.demos)
        == 5
    )


def test_subset_takes_recordings_without_actions_first_as_action_free() -> None:
    subset = select_episodes(store_of(entries(10), entries(5, labelled=False)), Arm(10, 0.5, 0))
    assert all("video" in episode for episode in subset.action_free)
    assert not any("video" in episode for episode in subset.demos)


@pytest.mark.parametrize(("demos", "ratio"), [(11, 0.0), (6, 1.0)])
def test_subset_of_a_too_small_store_names_task_and_numbers(demos: int, ratio: float) -> None:
    with pytest.raises(
        SubsetError, match=f"Lift: {demos} demos .* the store has 10 episodes, 10 of them with actions"
    ):
        select_episodes(store_of(entries(10)), Arm(demos, ratio, 0))


def test_subset_replaces_quarantined_episodes_and_keeps_the_counts() -> None:
    store = store_of(entries(30))
    before = select_episodes(store, Arm(8, 1.0, 0))
    aside = {before.demos[0], before.action_free[0]}
    after = select_episodes(store, Arm(8, 1.0, 0), aside)
    assert len(after.demos) == len(after.action_free) == 8
    assert not aside & {*after.demos, *after.action_free}
    assert set(before.demos) - aside <= set(after.demos)
    assert set(before.action_free) - aside <= set(after.action_free)


def test_subset_with_too_few_whole_episodes_names_the_quarantined() -> None:
    with pytest.raises(SubsetError, match=r"the store has 9 episodes.*; 1 are set aside as damaged"):
        select_episodes(store_of(entries(10)), Arm(10, 0, 0), {"Lift-0000"})


def test_subset_permutation_is_fixed() -> None:
    """Another permutation would make every earlier arm incomparable."""
    assert select_episodes(store_of(entries(10)), Arm(3, 0, 0)).demos == (
        "Lift-0005",
        "Lift-0006",
        "Lift-0008",
    )


def test_subset_of_tasks_without_labels_has_action_free_episodes_only() -> None:
    """The paper's split of the tasks: the labelled ones keep their demos, the others give as many action-free
    episodes.
    """
    store = store_of(entries(20), entries(30, "Stack"), entries(10, "Film", labelled=False))
    subset = select_episodes(store, Arm(5, 1.0, 0), labels=Labels(("Lift",)))
    assert subset.demos == tuple(i for i in select_episodes(store_of(entries(20)), Arm(5, 1.0, 0)).demos)
    assert [
        len([i for i in subset.action_free if i.startswith(task)]) for task in ("Lift", "Stack", "Film")
    ] == [5, 5, 5]
    for count, videos in ((5, 0), (5, 3), (2, 8)):
        chosen = select_episodes(store, Arm(count, 1.0, 0), labels=Labels(("Lift",), videos))
        of_stack = [i for i in chosen.action_free if i.startswith("Stack")]
        assert (len(chosen.demos), len(of_stack)) == (count, videos)
        assert set(of_stack) <= {i for i in subset.action_free if i.startswith("Stack")} or videos > 5
    with pytest.raises(SubsetError, match="Film: 0 demos and 31 action-free episodes are asked for"):
        select_episodes(store, Arm(5, 1.0, 0), labels=Labels(("Lift",), 31))
    with pytest.raises(SubsetError, match="Door: the store has no such task; it has"):
        select_episodes(store, Arm(5, 0, 0), labels=Labels(("Door",)))


# -- held-out episodes ---------------------------------------------------------------------------------------

grids = st.tuples(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0]), min_size=1, max_size=3),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
)
"""Demo counts, ratios and seeds of a sweep."""


def episodes(*subsets: Subset) -> set[str]:
    return {episode for subset in subsets for episode in subset.episodes}


@given(grids, st.integers(1, 8), st.integers(0, 9))
def test_held_out_episodes_are_in_no_arm_of_the_sweep(
    grid: tuple[list[int], list[float], list[int]], count: int, seed: int
) -> None:
    """The largest arm of every seed determines the used episodes."""
    store, (demos, ratios, seeds) = store_of(entries(150), entries(40, labelled=False)), grid
    arms = [
        select_episodes(store, Arm(demo_count, ratio, s))
        for demo_count in demos
        for ratio in ratios
        for s in seeds
    ]
    used = episodes(*(select_episodes(store, Arm(max(demos), max(ratios), s)) for s in seeds))
    assert episodes(*arms) <= used
    chosen = held_out(store, "Lift", count, used, seed=seed)
    assert len(set(chosen)) == count
    assert not set(chosen) & episodes(*arms)


@given(
    st.sets(st.sampled_from([f"Lift-{i:04d}" for i in range(40)]), max_size=30),
    st.integers(1, 10),
    st.integers(1, 10),
    st.integers(0, 9),
)
def test_held_out_episodes_are_nested_and_change_only_when_used(
    used: set[str], a: int, b: int, seed: int
) -> None:
    store = store_of(entries(40))
    fewer, more = (
        held_out(store, "Lift", min(a, b), used, seed=seed),
        held_out(store, "Lift", max(a, b), used, seed=seed),
    )
    assert more[: len(fewer)] == fewer
    others = {episode.episode_id for episode in entries(40)} - used - set(fewer)
    assert held_out(store, "Lift", len(fewer), used | others, seed=seed) == fewer, (
        "as long as the sweep takes none of them they stay"
    )


def test_held_out_episodes_are_seeded_and_independent_of_manifest_order() -> None:
    listed = entries(60)
    assert held_out(store_of(listed), "Lift", 5, set()) == held_out(store_of(listed[::-1]), "Lift", 5, set())
    assert len({held_out(store_of(listed), "Lift", 5, set(), seed=seed) for seed in range(10)}) == 10
    assert held_out(store_of(listed), "Lift", 2, set()) == (
        "Lift-0048",
        "Lift-0040",
    ), "another choice would be another measurement"


def test_held_out_episodes_are_the_last_that_demos_use() -> None:
    store = store_of(entries(20))
    chosen = held_out(store, "Lift", 5, set())
    assert all(
        held_out(store, "Lift", 5, episodes(select_episodes(store, Arm(demos, 0, 0)))) == chosen
        for demos in range(1, 16)
    )


def test_held_out_prefers_labelled_recordings_and_skips_short_ones() -> None:
    store = store_of(entries(3), entries(3, labelled=False))
    assert ["video" in episode for episode in held_out(store, "Lift", 5, set())] == [False] * 3 + [True] * 2
    with pytest.raises(
        SubsetError,
        match="Lift: 1 held-out episodes of at least 11 frames are asked for, 0 are left that no arm uses",
    ):
        held_out(store, "Lift", 1, set(), shortest=11)
    with pytest.raises(
        SubsetError, match="2 held-out episodes of at least 1 frames are asked for, 1 are left"
    ):
        held_out(store_of(entries(3)), "Lift", 2, {"Lift-0000", "Lift-0001"})
