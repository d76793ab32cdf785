"""Episodes through Ray Data: fetched, or fetched and decoded, ahead of a training worker. The one file of
training with ray.data.

A dataset of numbers of episodes, a stage that is one actor, and a streaming iterator that keeps the order.
Ray Data's back-pressure holds the stage back once `clip_stream.AHEAD_BYTES` of its output wait in the object
store.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from orchestrator.data.clip_sampler import EpisodeVisit
from orchestrator.data.clip_stream import (
    AHEAD_BYTES,
    CACHE_BYTES,
    DECODE_CPUS,
    FETCH_CPUS,
    LruSizes,
    decode_visit,
)
from orchestrator.data.episode_format import Episode, EpisodeError
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import open_storage
from policy.config import ClipShape
from policy.interface import Contract
from sim_workers.checkout import Files, check_imported, file_hashes

BLOCK_BYTES = 2**20  # output that the stage passes on at once; larger rows alone
BLOCK_ROWS = 1024  # input rows of one task
PREFETCHED_BLOCKS = 2  # on their way from the object store to this process
PAUSE_S = 0.02


class _Pause(ExecutionCallback):
    """Pause after each step of Ray Data's scheduling loop, which runs in the training process.

    While back-pressure holds a stage back, the loop (Ray 2.60) never waits and takes a core.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(PAUSE_S)


class RayDataFetcher:
    """Fetches compressed episodes in an actor; an `EpisodeFetcher`."""

    def fetch(self, uri: str, entries: Sequence[EpisodeEntry]) -> Iterator[bytes]:
        """Yield the bytes of the entries, in order, fetched ahead by Ray Data."""
        distinct = {entry.sha256: entry for entry in entries}
        numbers = {sha256: number for number, sha256 in enumerate(distinct)}
        rows = [{"episode": numbers[entry.sha256]} for entry in entries]
        stage = _Fetch, (uri, tuple(distinct.values()), file_hashes()), FETCH_CPUS
        for row in _stream(rows, *stage):
            yield row["data"].as_py()


class RayDataDecoder:
    """Fetches and decodes episodes in an actor, on any node with a free CPU; a `VisitDecoder`."""

    def decode(
        self, uri: str, visits: Sequence[EpisodeVisit], shape: ClipShape, contract: Contract
    ) -> Iterator[Episode]:
        """Yield the decoded episodes of the visits, in order, decoded ahead by Ray Data."""
        distinct = {visit.entry.sha256: visit.entry for visit in visits}
        numbers = {sha256: number for number, sha256 in enumerate(distinct)}
        rows = [
            {
                "episode": numbers[visit.entry.sha256],
                "starts": list(visit.starts),
                "with_actions": visit.with_actions,
            }
            for visit in visits
        ]
        stage = _Decode, (uri, tuple(distinct.values()), file_hashes(), shape, contract), DECODE_CPUS
        for row in _stream(rows, *stage):
            # without a copy: the arrays lie in the object store until the visit is closed
            arrays = [buffer.as_buffer() for buffer in row["arrays"]]
            yield pickle.loads(row["data"].as_py(), buffers=arrays)


def _stream(
    rows: Sequence[dict[str, Any]], stage: type["_Fetch"], arguments: tuple[Any, ...], cpus: float
) -> Iterator[dict[str, pa.Scalar]]:
    """Yield the stage's row of each input row, in order. Raises EpisodeError for the first with a problem."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=AHEAD_BYTES)
    context.target_max_block_size = BLOCK_BYTES
    context.custom_execution_callback_classes = [_Pause]
    with ray.data.DataContext.current(context):
        # An actor, not tasks: a task that starts after a pause starts a Python process. One actor only: a
        # pool that grew could take the last CPU from another arm's stream, which would then wait for it.
        # from_items, not from_arrow: that one starts a task for every block, which needs a CPU, and where
        # training holds the last one it would wait for ever.
        made = ray.data.from_items(list(rows), override_num_blocks=-(-len(rows) // BLOCK_ROWS)).map_batches(
            stage,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=cpus,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
    for block in made.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCHED_BLOCKS
    ):
        for place in range(block.num_rows):
            row = {name: block[name][place] for name in block.column_names}
            if problem := row["problem"].as_py():
                raise EpisodeError(problem)
            yield row


class _Fetch:
    """Stage that takes the number of an episode and returns its compressed, verified bytes.

    An EpisodeError is passed as data, so that it is raised at its place in the order, with its own message.
    """

    def __init__(self, uri: str, entries: tuple[EpisodeEntry, ...], code: Files) -> None:
        """`code`: file hashes of the worker that awaits the episodes. Raises CodeChangedError if this process
        imported other code.
        """
        check_imported(code)
        self._storage, self._entries = open_storage(uri), entries

    def __call__(self, block: pa.Table) -> pa.Table:
        (row,) = block.to_pylist()
        data, arrays, problem = b"", list[bytes](), ""
        try:
            data, arrays = self._read(self._entries[row["episode"]], row)
        except EpisodeError as error:
            problem = str(error)
        return pa.table(
            {
                "data": pa.array([data], pa.large_binary()),
                "arrays": pa.array([arrays], pa.list_(pa.large_binary())),
                "problem": [problem],
            }
        )

    def _read(self, entry: EpisodeEntry, row: dict[str, Any]) -> tuple[bytes, list[bytes]]:
        """Return the episode's bytes and no arrays."""
        return fetch(self._storage, entry), []


class _Decode(_Fetch):
    """Stage that takes a visit and returns its episode, pickled, with the arrays apart."""

    def __init__(
        self,
        uri: str,
        entries: tuple[EpisodeEntry, ...],
        code: Files,
        shape: ClipShape,
        contract: Contract,
    ) -> None:
        super().__init__(uri, entries, code)
        self._shape, self._contract = shape, contract
        self._cached, self._sizes = dict[str, bytes](), LruSizes(CACHE_BYTES)

    def _read(self, entry: EpisodeEntry, row: dict[str, Any]) -> tuple[bytes, list[bytes]]:
        data = self._cached[entry.sha256] if self._sizes.use(entry.sha256) else self._fetch(entry)
        visit = EpisodeVisit(entry, tuple(row["starts"]), row["with_actions"])
        arrays: list[pickle.PickleBuffer] = []
        episode = decode_visit(data, visit, self._shape, self._contract)
        head = pickle.dumps(episode, protocol=5, buffer_callback=arrays.append)
        return head, [bytes(array.raw()) for array in arrays]

    def _fetch(self, entry: EpisodeEntry) -> bytes:
        data = fetch(self._storage, entry)
        self._cached[entry.sha256] = data
        for evicted in self._sizes.add(entry.sha256, entry.nbytes):
            del self._cached[evicted]
        return data
