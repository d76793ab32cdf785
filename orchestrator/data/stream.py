"""Clips on their way: store -> Ray Data -> the training worker. The only file with ray.data.

A plan, made from seeds alone, says in which order which worker sees which clips. Ray Data fetches and verifies the episodes it names,
compressed, ahead of need; the worker decodes them and cuts the clips. So the order never depends on timing or on how many tasks fetch.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from orchestrator.data.clips import Clip, cut, stack
from orchestrator.data.episodes import EpisodeEntry, Manifest, decode, fetch
from orchestrator.data.subset import Subset
from orchestrator.storage import open_storage
from policy.config import ClipShape

CLIPS_PER_VISIT = 8  # clips cut out of an episode once it is decoded: decoding is the cost, and it is shared
POOL_VISITS = 16  # visits whose clips are mixed before they form batches
FETCH_CPUS = 0.25  # logical CPUs of a training worker's fetching actor: it mostly waits for storage


_T = TypeVar("_T")


@dataclass(frozen=True)
class Visit:
    """One look into one episode: the first frames of the clips to cut."""

    entry: EpisodeEntry
    starts: tuple[int, ...]
    with_actions: bool


def _in_chunks(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Tuples of `size` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk


def _epoch(episodes: Sequence[tuple[EpisodeEntry, bool]], seed: int, epoch: int) -> list[Visit]:
    """Every possible clip of every episode exactly once, in visits of CLIPS_PER_VISIT, in an order drawn from (seed, epoch)."""
    rng = np.random.default_rng([seed, epoch])
    visits = []
    for entry, with_actions in episodes:
        starts = rng.permutation(entry.length).tolist()
        visits += [Visit(entry, tuple(chunk), with_actions) for chunk in _in_chunks(starts, CLIPS_PER_VISIT)]
    return [visits[i] for i in rng.permutation(len(visits))]


def plan(manifest: Manifest, subset: Subset, seed: int, rank: int, world: int) -> Iterator[Visit]:
    """The endless visits of worker `rank` of `world`: epoch after epoch, dealt out in turn."""
    episodes = [(manifest[i], True) for i in subset.demos] + [(manifest[i], False) for i in subset.action_free]
    endless = itertools.chain.from_iterable(_epoch(episodes, seed, epoch) for epoch in itertools.count())
    return itertools.islice(endless, rank, None, world)


def pools(visits: Iterator[Visit], skip_clips: int, num_clips: int) -> Iterator[tuple[int, list[Visit]]]:
    """The pools of POOL_VISITS that hold clips `skip_clips` to `skip_clips + num_clips` of a plan, each with the number of its first clip."""
    first = 0
    for pool in _in_chunks(visits, POOL_VISITS):
        if first >= skip_clips + num_clips:
            return
        after = first + sum(len(visit.starts) for visit in pool)
        if after > skip_clips:
            yield first, list(pool)
        first = after


class _Fetch:
    """Ray Data stage: the compressed bytes of the episodes that a block of visits names. Lives as long as the stream, with one client."""

    def __init__(self, uri: str) -> None:
        self._storage = open_storage(uri)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        rows = zip(block["key"], block["sha256"], block["episode_id"], strict=True)
        data = [fetch(self._storage, key, sha256, episode) for key, sha256, episode in rows]
        return {"data": np.array(data, dtype=object)}


def _fetched(uri: str, visits: list[Visit]) -> Iterator[bytes]:
    """The visits' episodes, in order, through Ray Data."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    rows = [{"key": v.entry.key, "sha256": v.entry.sha256, "episode_id": v.entry.episode_id} for v in visits]
    blocks = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // POOL_VISITS))
    # An actor, not tasks: short tasks far apart would each start a Python process anew. One, not some: a stream that grew could take
    # the last CPU from another arm's, which would then wait for it to end.
    actor = ray.data.ActorPoolStrategy(size=1)
    fetched = blocks.map_batches(_Fetch, fn_constructor_args=(uri,), batch_size=POOL_VISITS, num_cpus=FETCH_CPUS, compute=actor)
    for row in fetched.iter_rows():
        yield row["data"]


def clip_stream(
    visits: Iterator[tuple[Visit, bytes]], pool_sizes: list[tuple[int, int]], cameras: tuple[str, ...], shape: ClipShape, action_dim: int, seed: int
) -> Iterator[Clip]:
    """Decode, cut and mix: pool by pool, the clips in an order drawn from (seed, number of the pool's first clip)."""
    for first, size in pool_sizes:
        clips = []
        for visit, data in itertools.islice(visits, size):
            episode = decode(data, cameras, visit.with_actions)
            clips += [cut(episode, start, shape, action_dim) for start in visit.starts]
        for i in np.random.default_rng([seed, first]).permutation(len(clips)):
            yield clips[i]


def batches(
    uri: str,
    manifest: Manifest,
    subset: Subset,
    shape: ClipShape,
    *,
    seed: int,
    rank: int,
    world: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
) -> Iterator[dict[str, Any]]:
    """The training batches of one worker for steps `first_step` to `num_steps`, `batch_size` clips each.

    A run that stops and starts again at any step sees exactly what an uninterrupted one would have.
    """
    skip, need = first_step * batch_size, (num_steps - first_step) * batch_size
    chosen = list(pools(plan(manifest, subset, seed, rank, world), skip, need))
    visits = [visit for _, pool in chosen for visit in pool]
    with_bytes = zip(visits, _fetched(uri, visits), strict=True)
    sizes = [(first, len(pool)) for first, pool in chosen]
    clips = clip_stream(with_bytes, sizes, manifest.contract.cameras, shape, len(manifest.contract.action), seed)
    wanted = itertools.islice(clips, skip - chosen[0][0], None)
    for _ in range(first_step, num_steps):
        yield stack(list(itertools.islice(wanted, batch_size)))
