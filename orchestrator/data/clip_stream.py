"""Stream of clips: store -> fetcher or decoder -> training worker.

orchestrator/data/clip_sampler.py defines the clips and their order. An `EpisodeFetcher` prefetches and
verifies the compressed episodes that they need, and the worker decodes them; or a `VisitDecoder` does both
elsewhere. The worker cuts the clips and stacks them into batches. So the order never depends on timing or on
how much is fetched at once. On a cluster both are Ray Data's (orchestrator/data/ray_prefetch.py).
"""

import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar

from orchestrator.data.clip_sampler import CLIPS_PER_VISIT, POOL_VISITS, ClipSampler, EpisodeVisit
from orchestrator.data.clips import Clip, ClipBatch, cut_clip, shown_frames
from orchestrator.data.episode_format import Episode, decode
from orchestrator.data.episode_store import fetch
from orchestrator.data.image_scaling import resized
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import open_storage
from policy.config import ClipShape
from policy.interface import Contract

FETCH_CPUS = 0.25  # logical CPUs of a training worker's fetching actor, which mostly waits for storage
# Logical CPUs of a training worker's decoding actor (data.decode: cluster). It uses up to a core; half of one
# leaves room for the trainer on a machine that has no more cores than trainers.
DECODE_CPUS = 0.5
# compressed episodes that a worker caches, since each is visited many times per epoch
CACHE_BYTES = 256 * 2**20
AHEAD_BYTES = 64 * 2**20  # episodes fetched or decoded before the worker takes them
READY_BATCHES = 2  # batches cut ahead of the training step

_T = TypeVar("_T")


class EpisodeFetcher(Protocol):
    """Source of compressed episodes, which the training worker decodes."""

    def fetch(self, uri: str, entries: Sequence[EpisodeEntry]) -> Iterator[bytes]:
        """Yield the verified bytes of the entries of the store `uri`, in order; an entry may occur often.

        Raises EpisodeError for the first that is missing or damaged; nothing of it is yielded.
        """


class VisitDecoder(Protocol):
    """Source of decoded episodes."""

    def decode(
        self, uri: str, visits: Sequence[EpisodeVisit], shape: ClipShape, contract: Contract
    ) -> Iterator[Episode]:
        """Yield the episode of each visit, in order, as `decode_visit` returns it.

        Raises EpisodeError for the first that is missing or damaged; nothing of it is yielded.
        """


class ThreadFetcher:
    """Fetches one episode after another in the stream's own thread, without Ray."""

    def fetch(self, uri: str, entries: Sequence[EpisodeEntry]) -> Iterator[bytes]:
        """Yield the bytes of the entries, in order."""
        storage = open_storage(uri)
        for entry in entries:
            yield fetch(storage, entry)


@dataclass(frozen=True)
class FetchPlan:
    """Episodes that a worker fetches, in order, and what it drops from its cache for each.

    Made once, before a byte is read: the fetcher gets the entries, the worker follows the evictions.
    """

    entries: tuple[EpisodeEntry, ...]
    """One per fetch; an episode that was evicted is fetched again at its next visit."""
    evictions: tuple[tuple[str, ...], ...]
    """Per fetch, the hashes of the episodes that leave the cache when it arrives; its own if it does not
    fit.
    """

    @classmethod
    def make(cls, order: ClipSampler, first_step: int, num_steps: int, cache_bytes: int) -> "FetchPlan":
        """Plan the fetches of the steps `first_step` to `num_steps` (excluded) for an LRU cache of
        `cache_bytes` bytes of compressed episodes.
        """
        missing = {entry.sha256: entry.nbytes for entry in (*order.demos, *order.action_free)}
        all_fit = sum(missing.values()) <= cache_bytes
        cache = LruSizes(cache_bytes)
        entries: list[EpisodeEntry] = []
        evictions: list[tuple[str, ...]] = []
        for visit in visits(order, first_step, num_steps):
            entry = visit.entry
            if cache.use(entry.sha256):
                continue
            entries.append(entry)
            evictions.append(cache.add(entry.sha256, entry.nbytes))
            missing.pop(entry.sha256, None)
            if all_fit and not missing:
                break
        return cls(tuple(entries), tuple(evictions))


class LruSizes:
    """Bookkeeping of an LRU cache of `capacity` bytes: hashes and sizes, without the data."""

    def __init__(self, capacity: int) -> None:
        self._left = capacity
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def use(self, sha256: str) -> bool:
        """Return whether it is cached; if so, it is the last to be evicted from now on."""
        if sha256 not in self._sizes:
            return False
        self._sizes.move_to_end(sha256)
        return True

    def add(self, sha256: str, nbytes: int) -> tuple[str, ...]:
        """Add an episode and return the hashes of those that it evicts: its own too if it does not fit."""
        self._sizes[sha256] = nbytes
        self._left -= nbytes
        evicted = []
        while self._left < 0:
            oldest, size = self._sizes.popitem(last=False)
            self._left += size
            evicted.append(oldest)
        return tuple(evicted)


def visits(order: ClipSampler, first_step: int, num_steps: int) -> Iterator[EpisodeVisit]:
    """Yield the visits that the steps `first_step` to `num_steps` (excluded) open, in order."""
    clips = (num_steps - first_step) * order.batch_size
    return (draw.visit for draw in islice(order.walk(first_step), clips) if draw.opens)


def memory_bound(
    contract: Contract,
    shape: ClipShape,
    entries: Sequence[EpisodeEntry],
    batch_size: int,
    action_free: bool,
    stores: int = 1,
    picture_bytes: int | None = None,
) -> int:
    """Return the maximum bytes that one worker's stream of these episodes holds, in its own process and in
    the object store.

    `stores`: number of stores of a merged manifest that are drawn by their weights; 1 otherwise.
    `picture_bytes`: bytes of one picture of one camera, if kept as latents (`latent_cache.picture_bytes`);
    None for RGB.
    """
    frame = (picture_bytes or 3 * math.prod(contract.image_size)) * len(contract.cameras)
    frames = shape.history + shape.frames_per_view
    visit = min(max(entry.length for entry in entries), CLIPS_PER_VISIT * frames) * frame
    opened = (POOL_VISITS + 1) * visit * (2 if action_free else 1) * stores
    stored = sum(entry.nbytes for entry in entries)
    cached, fetched = min(CACHE_BYTES, stored), AHEAD_BYTES + max(entry.nbytes for entry in entries)
    return cached + fetched + opened + (READY_BATCHES + 2) * batch_size * frames * frame


def decode_entry(
    data: bytes,
    entry: EpisodeEntry,
    contract: Contract,
    with_actions: bool,
    wanted: Sequence[int] | None = None,
    decode: Callable[..., Episode] = decode,
) -> Episode:
    """Return an episode with the views of a contract, under the id of its entry: the file's own, or one of a
    merged manifest. Raises EpisodeError as `decode` does, a function with the signature of
    `episode_format.decode`.

    An entry with other cameras or another picture size (`merged_store.py`) names the camera that each of the
    contract's shows; pictures are scaled, and a proprioception of another layout is left out.
    """
    if entry.cameras == contract.cameras and entry.image_size == contract.image_size:
        episode = decode(data, contract.cameras, with_actions, wanted)
    else:
        recorded = decode(data, tuple(dict.fromkeys(entry.cameras)), with_actions, wanted)
        scaled = {name: resized(shown, contract.image_size) for name, shown in recorded.frames.items()}
        shows = zip(contract.cameras, entry.cameras, strict=True)
        episode = replace(recorded, frames={camera: scaled[theirs] for camera, theirs in shows})
    if episode.proprio is not None and episode.proprio.shape[1] != len(contract.proprio):
        episode = replace(episode, proprio=None)
    return (
        episode if episode.episode_id == entry.episode_id else replace(episode, episode_id=entry.episode_id)
    )


def decode_visit(
    data: bytes,
    visit: EpisodeVisit,
    shape: ClipShape,
    contract: Contract,
    decode: Callable[..., Episode] = decode,
) -> Episode:
    """Return the visit's episode with the frames that its clips show, as `decode_entry` does."""
    wanted = shown_frames(visit.starts, visit.entry.length, shape).ravel().tolist()
    return decode_entry(data, visit.entry, contract, visit.with_actions, wanted, decode)


class CachedDecoder:
    """Opens visits in the training worker, from the bytes of a plan's episodes."""

    def __init__(
        self,
        plan: FetchPlan,
        fetched: Iterator[bytes],
        shape: ClipShape,
        contract: Contract,
        decode: Callable[..., Episode] = decode,
    ) -> None:
        """Decode `fetched`, which yields the bytes of the plan's entries, in order."""
        self._arrivals = zip(plan.evictions, fetched, strict=False)
        self._shape, self._contract, self._decode = shape, contract, decode
        self._cache: dict[str, bytes] = {}

    def __call__(self, visit: EpisodeVisit) -> Episode:
        """Decode the visit's episode. To be called with the plan's visits, in order."""
        sha256 = visit.entry.sha256
        data = self._cache.get(sha256)
        if data is None:
            evicted, data = next(self._arrivals)
            self._cache[sha256] = data
            for old in evicted:
                del self._cache[old]
        return decode_visit(data, visit, self._shape, self._contract, self._decode)


def clips(
    order: ClipSampler,
    first_step: int,
    open_visit: Callable[[EpisodeVisit], Episode],
    shape: ClipShape,
    contract: Contract,
) -> Iterator[Clip]:
    """Yield the order's clips from a step on, without end; `open_visit` returns a visit's decoded episode."""
    opened: dict[int, Episode] = {}
    for draw in order.walk(first_step):
        key = id(draw.visit)
        if draw.opens:
            opened[key] = open_visit(draw.visit)
        yield cut_clip(opened[key], draw.start, shape, contract)
        if draw.closes:
            del opened[key]


def _ahead(items: Iterator[_T], depth: int) -> Iterator[_T]:
    """Yield the same items, prefetched by a thread that keeps up to `depth` of them ready."""
    ready: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: _T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)
        finally:
            items.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=work, name="clips", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def batches(
    uri: str,
    contract: Contract,
    order: ClipSampler,
    shape: ClipShape,
    *,
    first_step: int,
    num_steps: int,
    cache_bytes: int = CACHE_BYTES,
    fetcher: EpisodeFetcher | None = None,
    decoder: VisitDecoder | None = None,
    on_fetched: Callable[[int], None] = lambda nbytes: None,
) -> Iterator[ClipBatch]:
    """Yield the training batches of one worker for steps `first_step` to `num_steps` (excluded).

    A run that resumes at any step receives the same batches as an uninterrupted one, wherever episodes are
    fetched and decoded. Raises EpisodeError if an episode is missing or damaged; nothing of it enters a
    batch.

    `fetcher` (None: ThreadFetcher) fetches the episodes, of which this process caches up to `cache_bytes`
    bytes, and decodes them. A `decoder` takes the place of both. `on_fetched`: called with the compressed
    bytes of each episode that arrives, in the prefetching thread.
    """

    def make() -> Iterator[ClipBatch]:
        arriving: Iterator[bytes] | Iterator[Episode]
        if decoder:
            planned = tuple(visits(order, first_step, num_steps))
            arriving = episodes = decoder.decode(uri, planned, shape, contract)

            def open_visit(visit: EpisodeVisit) -> Episode:
                episode = next(episodes)
                on_fetched(visit.entry.nbytes)
                return episode
        else:
            plan = FetchPlan.make(order, first_step, num_steps, cache_bytes)
            arriving = fetched = (fetcher or ThreadFetcher()).fetch(uri, plan.entries)
            open_visit = CachedDecoder(plan, _counted(fetched, on_fetched), shape, contract)
        endless = clips(order, first_step, open_visit, shape, contract)
        try:
            for _ in range(first_step, num_steps):
                yield ClipBatch.stack([next(endless) for _ in range(order.batch_size)])
        finally:
            arriving.close()  # type: ignore[union-attr]

    return _ahead(make(), READY_BATCHES)


def _counted(fetched: Iterator[bytes], on_fetched: Callable[[int], None]) -> Iterator[bytes]:
    for data in fetched:
        on_fetched(len(data))
        yield data
