"""Stream of clips: store -> Ray Data -> training worker. The only module that uses ray.data.

orchestrator/data/clip_sampler.py defines the clips and their order. Ray Data prefetches and verifies the
compressed episodes that they need; the worker decodes them and cuts the clips. So the order never depends on
timing or on how much is fetched at once.
"""

import math
import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from orchestrator.data.clip_sampler import CLIPS_PER_VISIT, POOL_VISITS, ClipSampler
from orchestrator.data.clips import Clip, cut_clip, shown_frames, stack
from orchestrator.data.episode_format import Episode, EpisodeError, decode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import open_storage
from policy.config import ClipShape
from policy.interface import Contract
from sim_workers.checkout import Files, check_imported, file_hashes

FETCH_CPUS = 0.25  # logical CPUs of a training worker's fetching actor, which mostly waits for storage
GROUP_EPISODES = 16  # episodes fetched together
GROUPS_AHEAD = 3  # groups fetched before the worker needs them
# compressed episodes that a worker caches, since each is visited many times per epoch
CACHE_BYTES = 256 * 2**20
READY_BATCHES = 2  # batches decoded ahead of the training step

_T = TypeVar("_T")


def memory_bound(
    contract: Contract,
    shape: ClipShape,
    entries: Sequence[EpisodeEntry],
    batch_size: int,
    action_free: bool,
    picture_bytes: int | None = None,
) -> int:
    """Return the maximum bytes that one worker's stream of these episodes holds, its fetching actor included.

    `picture_bytes`: bytes of one picture of one camera, if kept as latents (`latent_cache.picture_bytes`);
    None for RGB.
    """
    frame = (picture_bytes or 3 * math.prod(contract.image_size)) * len(contract.cameras)
    visit = min(max(entry.length for entry in entries), CLIPS_PER_VISIT * shape.frames_per_view) * frame
    opened = (POOL_VISITS + 1) * visit * (2 if action_free else 1)
    fetched = (GROUPS_AHEAD + 1) * GROUP_EPISODES * max(entry.nbytes for entry in entries)
    cached = min(CACHE_BYTES, sum(entry.nbytes for entry in entries))
    return cached + fetched + opened + (READY_BATCHES + 2) * batch_size * shape.frames_per_view * frame


class _Recent:
    """LRU cache's bookkeeping of opened episodes, up to `cache_bytes`.

    It depends only on the sequence of episodes, so that the worker and its fetching actor agree on it.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._left = cache_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def open(self, entry: EpisodeEntry) -> tuple[bool, list[str]]:
        """Mark an episode as used; return whether it was cached, and the hashes of the episodes that it
        evicts.
        """
        held = entry.sha256 in self._sizes
        if not held:
            self._sizes[entry.sha256] = entry.nbytes
            self._left -= entry.nbytes
        self._sizes.move_to_end(entry.sha256)
        dropped = []
        while self._left < 0:
            sha256, nbytes = self._sizes.popitem(last=False)
            self._left += nbytes
            dropped.append(sha256)
        return held, dropped


@dataclass(frozen=True)
class _Need:
    """Episodes that a worker needs fetched: those that it opens and does not have in its cache."""

    order: ClipSampler
    first_step: int
    num_steps: int
    cache_bytes: int

    def episodes(self) -> Iterator[EpisodeEntry]:
        sizes = {entry.sha256: entry.nbytes for entry in (*self.order.demos, *self.order.action_free)}
        all_fit = sum(sizes.values()) <= self.cache_bytes
        recent = _Recent(self.cache_bytes)
        for draw in islice(
            self.order.walk(self.first_step), (self.num_steps - self.first_step) * self.order.batch_size
        ):
            if draw.opens and not recent.open(draw.visit.entry)[0]:
                yield draw.visit.entry
                sizes.pop(draw.visit.entry.sha256, None)
            if all_fit and not sizes:
                return


class _Fetch:
    """Ray Data stage that returns the compressed, verified bytes of numbered groups of the episodes that a
    worker needs.

    Lives as long as the stream, with one storage client. It derives the list from the worker's order, and
    stays at most GROUPS_AHEAD of the worker: with Ray Data's own backpressure, the executor in the training
    process would spin (Ray 2.60).
    """

    def __init__(self, uri: str, need: _Need, pace: "_Pace", code: Files) -> None:
        """`code`: file hashes of the worker that awaits the episodes. Raises CodeChangedError if this process
        imported other code.
        """
        check_imported(code)
        self._storage, self._need, self._pace = open_storage(uri), need, pace
        self._next_group, self._episodes = 0, need.episodes()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Fetch the group whose number is the input's only row; return one row with its episodes' bytes and
        problems.
        """
        (group,) = block["item"].to_pylist()
        self._pace.wait_for(group - GROUPS_AHEAD)
        data, problems = zip(*map(self._fetch, self._group(group)), strict=True)
        return pa.table(
            {
                "data": pa.array([data], pa.list_(pa.large_binary())),
                "problem": pa.array([problems], pa.list_(pa.string())),
            }
        )

    def _group(self, group: int) -> list[EpisodeEntry]:
        if group < self._next_group:  # Ray retries a group whose result was lost
            self._next_group, self._episodes = 0, self._need.episodes()
        skipped = (group - self._next_group) * GROUP_EPISODES
        self._next_group = group + 1
        return list(islice(self._episodes, skipped, skipped + GROUP_EPISODES))

    def _fetch(self, entry: EpisodeEntry) -> tuple[bytes, str]:
        """Return (bytes, "") or (b"", problem): an EpisodeError is passed as data, so that its message
        arrives unchanged.
        """
        try:
            return fetch(self._storage, entry), ""
        except EpisodeError as error:
            return b"", str(error)


@dataclass(frozen=True)
class _Pace:
    """Number of groups that the worker has taken, published to its fetching actor through the cluster's
    key-value store.
    """

    key: bytes

    def taken(self, groups: int) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.key, str(groups).encode())

    def wait_for(self, groups: int) -> None:
        from ray.experimental.internal_kv import _internal_kv_get

        while groups > 0 and int(_internal_kv_get(self.key) or 0) < groups:
            time.sleep(0.05)

    def forget(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self.key)


def _fetched(uri: str, need: _Need) -> Iterator[bytes]:
    """Yield the needed episodes' bytes, in order, through Ray Data. Raises EpisodeError for the first missing
    or damaged one.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1024  # pass every row (a group) on immediately
    groups = math.ceil(sum(1 for _ in need.episodes()) / GROUP_EPISODES)
    numbers = ray.data.from_items(list(range(groups)), override_num_blocks=math.ceil(groups / 16))
    pace = _Pace(f"demoscale/{uuid.uuid4().hex}".encode())
    # An actor, not tasks: short tasks far apart would each start a Python process. One actor only: a pool
    # that grew could take the last CPU from another arm's stream, which would then wait for this one to end.
    fetched = numbers.map_batches(
        _Fetch,
        fn_constructor_args=(uri, need, pace, file_hashes()),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=FETCH_CPUS,
        # One task at a time: of two, the later could run first and wait for the worker to take a group that
        # the earlier one must fetch.
        compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1),
    )
    try:
        for group, row in enumerate(fetched.iter_batches(batch_size=1, batch_format="pyarrow"), 1):
            for data, problem in zip(row["data"][0], row["problem"][0], strict=True):
                if problem.as_py():
                    raise EpisodeError(problem.as_py())
                yield data.as_py()
            pace.taken(group)
    finally:
        pace.forget()


Bring = Callable[[str, _Need], Iterator[bytes]]
"""Function that yields the bytes of the episodes that a worker needs, in order."""


def _batches_of(fetched: Iterator[bytes], on_fetched: Callable[[int], None]) -> Iterator[bytes]:
    for data in fetched:
        on_fetched(len(data))
        yield data


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


def clips(
    need: _Need,
    fetched: Iterator[bytes],
    shape: ClipShape,
    contract: Contract,
    decode: Callable[..., Episode] = decode,
) -> Iterator[Clip]:
    """Yield the order's clips from the first step on; `fetched` yields the needed episodes' bytes, in order.

    decode: function with the signature of `episode_format.decode`.
    """
    opened: dict[int, Episode] = {}
    held: dict[str, bytes] = {}
    recent = _Recent(need.cache_bytes)
    for draw in need.order.walk(need.first_step):
        visit = draw.visit
        if draw.opens:
            known, dropped = recent.open(visit.entry)
            data = held[visit.entry.sha256] if known else next(fetched)
            held[visit.entry.sha256] = data
            for sha256 in dropped:
                del held[sha256]
            wanted = shown_frames(visit.starts, visit.entry.length, shape).ravel().tolist()
            opened[id(visit)] = decode(data, contract.cameras, visit.with_actions, wanted)
        yield cut_clip(opened[id(visit)], draw.start, shape, contract)
        if draw.closes:
            del opened[id(visit)]


def fetch_in_thread(uri: str, need: _Need) -> Iterator[bytes]:
    """Yield the same bytes as `_fetched`, one episode after another and without Ray: for reading a few
    batches.
    """
    storage = open_storage(uri)
    for entry in need.episodes():
        yield fetch(storage, entry)


def batches(
    uri: str,
    contract: Contract,
    order: ClipSampler,
    shape: ClipShape,
    *,
    first_step: int,
    num_steps: int,
    cache_bytes: int = CACHE_BYTES,
    bring: Bring | None = None,
    on_fetched: Callable[[int], None] = lambda nbytes: None,
) -> Iterator[dict[str, Any]]:
    """Yield the training batches of one worker for steps `first_step` to `num_steps` (excluded).

    A run that resumes at any step receives the same batches as an uninterrupted one. Raises EpisodeError if
    an episode is missing or damaged; nothing of it is decoded. `bring`: replaces Ray Data. `on_fetched`:
    called with the bytes of each fetched episode, in the prefetching thread.
    """

    def made() -> Iterator[dict[str, Any]]:
        need = _Need(order, first_step, num_steps, cache_bytes)
        fetched = (bring or _fetched)(uri, need)
        endless = clips(need, _batches_of(fetched, on_fetched), shape, contract)
        try:
            for _ in range(first_step, num_steps):
                yield stack([next(endless) for _ in range(order.batch_size)])
        finally:
            fetched.close()  # type: ignore[attr-defined]

    return _ahead(made(), READY_BATCHES)
