"""Order of the clips of a training worker, determined by seeds alone. Pure.

Decoding is amortised: a *visit* decodes an episode once for several clips. The clips of a visit are spread at
random over the next POOL_VISITS visits, so that about that many episodes are open at any time and a batch
holds clips of many of them.

The order is a function of (data fingerprint, seed, epoch, world size, rank), and independent of timing and of
the number of fetching processes.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from orchestrator.data.manifest import EpisodeEntry

CLIPS_PER_VISIT = 8  # clips that share the cost of decoding an episode
MOST_DENOMINATOR = 10**6  # of a weight as a fraction
POOL_VISITS = 16  # visits open at a time, for demos and for action-free episodes each


@dataclass(frozen=True, eq=False)
class EpisodeVisit:
    """One decoding of one episode, with the first frames of the clips to cut."""

    entry: EpisodeEntry
    starts: tuple[int, ...]
    with_actions: bool


class Draw(NamedTuple):
    """Next clip of a worker."""

    visit: EpisodeVisit
    start: int
    opens: bool
    """True for the first draw from this visit since the walk began."""
    closes: bool
    """True for the last draw from this visit."""


@dataclass(frozen=True)
class ClipSampler:
    """Order of the clips of worker `rank` of `world`, which takes `batch_size` of them at every step."""

    demos: tuple[EpisodeEntry, ...]
    action_free: tuple[EpisodeEntry, ...]
    fingerprint: str
    """Fingerprint of the data from which the episodes are taken, hexadecimal."""
    seed: int
    rank: int
    world: int
    batch_size: int
    weights: tuple[tuple[str, float], ...] = ()
    """Pairs (beginning of the ids of a store's episodes, weight) of a merged manifest whose parts have
    weights; empty: an epoch holds every clip once.
    """

    def walk(self, first_step: int = 0) -> Iterator[Draw]:
        """Yield clips from a step on, without end; they do not depend on the step at which the walk
        begins.
        """
        demos, action_free = (
            self._weighted(episodes, kind) if self.weights else self._mixed(episodes, kind)
            for kind, episodes in enumerate((self.demos, self.action_free))
        )
        left: dict[int, int] = {}
        opened: set[int] = set()
        for place in count():
            visit, start = next(demos if self._labelled(place) else action_free)
            key = id(visit)
            left[key] = left.get(key, len(visit.starts)) - 1
            if place >= first_step * self.batch_size:
                opens = key not in opened
                opened.add(key)
                yield Draw(visit, start, opens, left[key] == 0)
            if left[key] == 0:
                del left[key]
                opened.discard(key)

    def _position(self, place: int) -> int:
        """Return the number of the worker's clip `place` among those of all workers."""
        step, within = divmod(place, self.batch_size)
        return (step * self.world + self.rank) * self.batch_size + within

    @property
    def _total(self) -> int:
        return len(self.demos) + len(self.action_free)

    def _labelled(self, place: int) -> bool:
        """Return whether the worker's clip number `place` comes from a demo.

        Over all workers, any stretch of batches holds demos and action-free clips in the ratio of demos to
        action-free episodes.
        """
        position, demos, total = self._position(place), len(self.demos), self._total
        return (position + 1) * demos // total > position * demos // total

    def _weighted(self, episodes: Sequence[EpisodeEntry], kind: int) -> Iterator[tuple[EpisodeVisit, int]]:
        """Yield clips of several stores by their weights, of each as `_mixed` yields them.

        Over all workers, any stretch of clips of this kind holds those of each store in proportion to the
        weights of the stores that have episodes of this kind, up to one clip per store.
        """
        own = [
            (weight, [entry for entry in episodes if entry.episode_id.startswith(name)], store)
            for store, (name, weight) in enumerate(self.weights, 1)
        ]
        own = [(weight, entries, store) for weight, entries, store in own if entries]
        streams = [self._mixed(entries, kind, store) for _, entries, store in own]
        shares = [Fraction(weight).limit_denominator(MOST_DENOMINATOR) for weight, _, _ in own]
        for place in count():
            position = self._position(place)
            if self._labelled(place) == (kind == 0):
                labelled = position * len(self.demos) // self._total
                yield next(streams[_turn(shares, labelled if kind == 0 else position - labelled)])

    def _visits(self, episodes: Sequence[EpisodeEntry], kind: int, store: int = 0) -> Iterator[EpisodeVisit]:
        """Yield the worker's visits without end; over all workers, an epoch holds every possible clip of
        every episode once.
        """
        return islice(
            (visit for epoch in count() for visit in self._epoch(episodes, kind, epoch, store)),
            self.rank,
            None,
            self.world,
        )

    def _epoch(
        self, episodes: Sequence[EpisodeEntry], kind: int, epoch: int, store: int = 0
    ) -> list[EpisodeVisit]:
        rng = self._random(2 * store, kind, epoch)
        visits = []
        for entry in episodes:
            starts = rng.permutation(entry.length).tolist()
            visits += [
                EpisodeVisit(entry, tuple(starts[i : i + CLIPS_PER_VISIT]), with_actions=kind == 0)
                for i in range(0, len(starts), CLIPS_PER_VISIT)
            ]
        return [visits[i] for i in rng.permutation(len(visits)).tolist()]

    def _random(self, purpose: int, kind: int, number: int) -> np.random.Generator:
        return np.random.default_rng([int(self.fingerprint, 16), self.seed, purpose, kind, number])

    def _mixed(
        self, episodes: Sequence[EpisodeEntry], kind: int, store: int = 0
    ) -> Iterator[tuple[EpisodeVisit, int]]:
        """Yield each visit's clips, delayed at random by less than POOL_VISITS visits. store: number of the
        store from 1; 0: all stores together.
        """
        rng = self._random(2 * store + 1, kind, self.rank)
        waiting: list[tuple[float, int, EpisodeVisit, int]] = []
        tie = count()
        for number, visit in enumerate(self._visits(episodes, kind, store)):
            for delay, start in zip(rng.random(len(visit.starts)).tolist(), visit.starts, strict=True):
                heapq.heappush(waiting, (number + POOL_VISITS * delay, next(tie), visit, start))
            while waiting and waiting[0][0] < number + 1:
                _, _, late, start = heapq.heappop(waiting)
                yield late, start


def _turn(shares: Sequence[Fraction], number: int) -> int:
    """Return which of the shares the clip `number` belongs to: of the first n clips each has its part of n,
    up to one clip.

    The first share takes its clips evenly spaced, the next one of those that are left, and so on.
    """
    left = sum(shares, Fraction(0))
    for place, share in enumerate(shares):
        part = share / left
        before, after = (
            number * part.numerator // part.denominator,
            (number + 1) * part.numerator // (part.denominator),
        )
        if after > before:
            return place
        number, left = number - before, left - share
    raise AssertionError("the last share takes all clips that are left")
