"""Choice of the episodes that an arm learns from, and of those held out from every arm. Pure.

One seeded permutation per (data set, seed, task). Demos are taken from its front, action-free episodes from
its back, so that a larger set of demos contains every smaller one, likewise for action-free episodes, and no
episode is both. Episodes that no arm takes serve to measure generated video (`held_out`); those on which the
action error is measured (`evaluation_episodes`) are chosen before any arm, by another permutation.
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.data.manifest import Manifest, seen_by
from policy.errors import DemoscaleError

EVALUATION_SEED = -1
"""Seed of the permutation from which episodes are held out for evaluation; no arm has it."""


class SubsetError(DemoscaleError):
    """Error of a choice, in one sentence: the task whose episodes do not suffice, and the numbers."""


class EpisodeCounts(Protocol):
    """Part of an arm (`config/arms.py`) that determines its episodes."""

    @property
    def demo_count(self) -> int:
        """Demos per task."""

    @property
    def action_free_ratio(self) -> float:
        """Action-free episodes per demo."""

    @property
    def seed(self) -> int:
        """Seed of the permutation of episodes."""
        ...


@dataclass(frozen=True)
class Labels:
    """Tasks that are demonstrated, and the number of videos of the others."""

    tasks: tuple[str, ...] = ()
    """All if empty."""
    videos: int | None = None
    """Action-free episodes of every other task; None: as many as an arm has demos of the labelled ones."""
    video_kind: str = ""
    """Kind of videos of a merged manifest that all action-free episodes come from; empty: they come from the
    parts that serve every line.
    """


EVERY_TASK = Labels()
"""Labels of a store whose tasks are all demonstrated."""


@dataclass(frozen=True)
class Subset:
    """Sorted ids of the chosen episodes: `demos` are read with their actions, `action_free` without."""

    demos: tuple[str, ...]
    action_free: tuple[str, ...]

    @property
    def episodes(self) -> tuple[str, ...]:
        """Sorted ids of all its episodes."""
        return tuple(sorted((*self.demos, *self.action_free)))

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 of the ids and their roles."""
        text = "\n".join((*self.demos, "--", *self.action_free))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def num_action_free(demo_count: int, action_free_ratio: float) -> int:
    """Return the number of action-free episodes per task for a ratio to the demos."""
    return round(action_free_ratio * demo_count)


@lru_cache(maxsize=32)
def permutation(manifest: Manifest, task: str, seed: int) -> npt.NDArray[np.int64]:
    """Return the order of one task's episodes, as indices into the manifest's ids: a function of task, ids,
    labels and seed.

    Episodes recorded without actions cannot be demos; they come last.
    """
    places = manifest.tasks[task]
    ids = manifest.episode_ids
    digests = b"".join(
        hashlib.blake2b(f"{seed}|{task}|{ids[place]}".encode()).digest()[:8] for place in places.tolist()
    )
    order: npt.NDArray[np.int64] = places[
        np.lexsort((np.frombuffer(digests, ">u8"), ~manifest.labelled[places]))
    ]
    return order


def select_episodes(
    manifest: Manifest,
    arm: EpisodeCounts,
    exclude: Set[str] = frozenset(),
    labels: Labels = EVERY_TASK,
    evaluation: Set[str] = frozenset(),
) -> Subset:
    """Choose the first `demo_count` episodes of every task as demos, and the last round(ratio x demo_count)
    as action-free ones.

    exclude: ids of quarantined episodes; the next in order replace them, the counts stay. labels: tasks with
    demos; of every other task the last `videos` episodes are taken as action-free ones, and no demos.
    evaluation: ids of the episodes that no arm may train on (`evaluation_episodes`); the next in order
    replace them too. Of a merged manifest's tasks that have videos only, no demos are taken, and their
    videos serve as action-free episodes in place of other tasks' demonstrations, never of their videos.
    Parts with a kind of videos serve only `labels` that name it, as the only source of action-free episodes.
    Raises SubsetError for an unknown task or too few episodes.
    """
    manifest = seen_by(manifest, labels.video_kind)
    if unknown := sorted(set(labels.tasks) - manifest.tasks.keys()):
        raise SubsetError(
            f"{', '.join(unknown)}: the store has no such task; it has {', '.join(manifest.tasks)}"
        )
    ids = manifest.episode_ids
    demos: list[str] = []
    action_free: list[str] = []
    films: list[str] = []
    if labels.video_kind:
        action_free = _of_kind(manifest, arm, labels, exclude)
    else:
        films = _films(manifest, arm.seed, exclude)
    for task in (task for task in manifest.tasks if task not in manifest.video_tasks):
        if not labels.tasks or task in labels.tasks:
            demo_count, free_count = arm.demo_count, num_action_free(arm.demo_count, arm.action_free_ratio)
        else:
            demo_count, free_count = 0, arm.demo_count if labels.videos is None else labels.videos
        if labels.video_kind:
            free_count = 0
        order = permutation(manifest, task, arm.seed)
        if exclude or evaluation:
            left = [ids[place] not in exclude and ids[place] not in evaluation for place in order.tolist()]
            order = order[left]
        labelled = int(manifest.labelled[order].sum())
        taken = films[: max(0, free_count - (len(order) - labelled))]
        action_free += taken
        films, free_count = films[len(taken) :], free_count - len(taken)
        if labelled < demo_count or len(order) < demo_count + free_count:
            aside = f"; {len(exclude)} are set aside as damaged" if exclude else ""
            aside += f"; {len(evaluation)} more are held out for evaluation" if evaluation else ""
            raise SubsetError(
                f"{task}: {demo_count} demos and {free_count} action-free episodes are asked for, "
                f"the store has {len(order)} episodes, {labelled} of them with actions{aside}"
            )
        demos += [ids[place] for place in order[:demo_count].tolist()]
        action_free += [ids[place] for place in order[len(order) - free_count :].tolist()]
    return Subset(tuple(sorted(demos)), tuple(sorted(action_free)))


def _films(manifest: Manifest, seed: int, exclude: Set[str]) -> list[str]:
    """Return the ids of the episodes of a merged manifest's video tasks, in a seeded order; empty for that of
    a store.
    """
    ids = manifest.episode_ids
    known = [ids[place] for task in manifest.video_tasks for place in manifest.tasks[task].tolist()]
    return sorted(
        (episode for episode in known if episode not in exclude),
        key=lambda episode: hashlib.blake2b(f"{seed}|{episode}".encode()).digest()[:8],
    )


def _of_kind(manifest: Manifest, arm: EpisodeCounts, labels: Labels, exclude: Set[str]) -> list[str]:
    """Return the ids of an arm's videos, all of one kind: round(ratio x demo_count) per demonstrated task,
    the first of a seeded order in which the tasks of the videos take turns. Raises SubsetError if too few.
    """
    kind, ids = labels.video_kind, manifest.episode_ids
    prefixes = tuple(part.prefix for part in manifest.parts if part.video_kind == kind)
    turns = list[tuple[int, bytes, str]]()
    for task, places in manifest.tasks.items():
        known = [ids[place] for place in places.tolist()]
        own = sorted(
            (hashlib.blake2b(f"{arm.seed}|{task}|{episode}".encode()).digest()[:8], episode)
            for episode in known
            if episode.startswith(prefixes) and episode not in exclude
        )
        turns += [(turn, *one) for turn, one in enumerate(own)]
    tasks = len(labels.tasks) or len(manifest.tasks.keys() - manifest.video_tasks)
    wanted = tasks * num_action_free(arm.demo_count, arm.action_free_ratio)
    if len(turns) < wanted:
        intact = " intact" if exclude else ""
        of_tasks = f"{tasks} task{'s' if tasks > 1 else ''}"
        raise SubsetError(
            f"{kind}: {wanted} videos are asked for, {arm.action_free_ratio:g} for each of {arm.demo_count}"
            f" demos of {of_tasks}, and its parts of stores have {len(turns)}{intact}; record more, or lower"
            " data.action_free_ratio"
        )
    return [episode for _, _, episode in sorted(turns)[:wanted]]


def evaluation_episodes(
    manifest: Manifest, amount: float | None, exclude: Set[str] = frozenset()
) -> tuple[str, ...]:
    """Return the sorted ids of the episodes on which every arm's action error is measured; empty if `amount`
    is None.

    Of each task's episodes with actions a share of `amount` (at least one) if it is below 1, else `amount`
    of them: the first of a permutation of its own, which depends on no arm and no seed, so that fewer are
    contained in more. exclude: quarantined episodes, which the next in order replace. Raises SubsetError if
    a task would have no episode left to learn from, or if fewer than two are held out in all: an interval
    needs two.
    """
    if amount is None:
        return ()
    ids, chosen, labelled = manifest.episode_ids, list[str](), 0
    for task in manifest.tasks:
        order = permutation(manifest, task, EVALUATION_SEED)
        known = [ids[place] for place in order[manifest.labelled[order]].tolist()]
        labelled += len(known)
        count = max(1, round(amount * len(known))) if amount < 1 else int(amount)
        if known and count >= len(known):
            raise SubsetError(
                f"{task}: suite.held_out asks for {count} episodes, and the store has {len(known)} with"
                " actions, of which some must be left to learn from; hold out fewer, or record more"
            )
        chosen += [episode for episode in known if episode not in exclude][:count] if known else []
    if len(chosen) < 2:
        raise SubsetError(
            f"suite.held_out: {len(chosen)} of {labelled} episodes with actions would be held out; an"
            " interval needs at least two: hold out more, or record more"
        )
    return tuple(sorted(chosen))


def held_out(
    manifest: Manifest, task: str, count: int, used: Set[str], shortest: int = 1, seed: int = 0
) -> tuple[str, ...]:
    """Return `count` episodes of a task that are not `used`: the last ones of its permutation, those with
    actions first.

    A smaller set is a subset of a larger one. If one of them becomes used, only that one is replaced; other
    used episodes change nothing. `shortest`: minimum frames of an episode. Raises SubsetError if too few are
    left.
    """
    ids, lengths = manifest.episode_ids, manifest.column("length").to_numpy()
    order = permutation(manifest, task, seed)[::-1]
    order = order[np.argsort(~manifest.labelled[order], kind="stable")]
    left = [ids[place] for place in order[lengths[order] >= shortest].tolist() if ids[place] not in used]
    if len(left) < count:
        raise SubsetError(
            f"{task}: {count} held-out episodes of at least {shortest} frames are asked for, {len(left)} are"
            " left that no arm uses"
        )
    return tuple(left[:count])
