"""Which episodes an arm learns from: the scientific core, pure and small.

One seeded permutation per (data set, seed, task). Demos are taken from its front, action-free episodes from its back, so that more
demos always contain the fewer, more action-free episodes always contain the fewer, and no episode is ever both.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.data.episodes import EpisodeEntry


class SubsetError(Exception):
    """One sentence: the task whose episodes do not suffice, and the numbers."""


@dataclass(frozen=True)
class Subset:
    """Episode ids, sorted. `demos` are read with their actions, `action_free` without."""

    demos: tuple[str, ...]
    action_free: tuple[str, ...]

    @property
    def digest(self) -> str:
        text = "\n".join((*self.demos, "--", *self.action_free))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def num_action_free(demo_count: int, action_free_ratio: float) -> int:
    """Action-free episodes per task that a ratio means."""
    return round(action_free_ratio * demo_count)


def permutation(entries: Iterable[EpisodeEntry], seed: int) -> list[EpisodeEntry]:
    """The order of one task's episodes: a function of their ids and the seed, not of how the manifest lists them.

    Episodes recorded without actions can never be demos; they come last.
    """

    def rank(entry: EpisodeEntry) -> tuple[bool, bytes]:
        return not entry.labelled, hashlib.blake2b(f"{seed}|{entry.task}|{entry.episode_id}".encode()).digest()

    return sorted(entries, key=rank)


def choose(entries: Iterable[EpisodeEntry], demo_count: int, action_free_ratio: float, seed: int) -> Subset:
    """The first `demo_count` demos of every task, and the last round(ratio x demo_count) episodes as action-free ones."""
    by_task = defaultdict(list)
    for entry in entries:
        by_task[entry.task].append(entry)
    free_count = num_action_free(demo_count, action_free_ratio)
    demos: list[str] = []
    action_free: list[str] = []
    for task, episodes in sorted(by_task.items()):
        order = permutation(episodes, seed)
        labelled = sum(entry.labelled for entry in order)
        if labelled < demo_count or len(order) < demo_count + free_count:
            raise SubsetError(
                f"{task}: {demo_count} demos and {free_count} action-free episodes are asked for, "
                f"the store has {len(order)} episodes, {labelled} of them with actions"
            )
        demos += [entry.episode_id for entry in order[:demo_count]]
        action_free += [entry.episode_id for entry in order[len(order) - free_count :]]
    return Subset(tuple(sorted(demos)), tuple(sorted(action_free)))
