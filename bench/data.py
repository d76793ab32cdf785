"""Is the data pipeline as cheap as decoding alone, does S3 cost what a folder costs, and does it stay so in
large stores?

    python -m bench.data                 about ten minutes
    python -m bench.data --quick         in a minute or two: few rounds, small stores

Clips from our pipeline, decoded in the training process or in Ray Data's actor, against a bare loop that only
decodes, and against torch's DataLoader over
robomimic-style HDF5: the same clips of the same episodes in the same sequence, in turns. CPU time is that of
all processes involved, counted between two batches.
"""

import json
import os
import statistics
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from bench import corpus, data_peers, harness
from bench.harness import CONSUMER, FETCHING, RAY, Child, Mark
from orchestrator.data.episode_store import latest_version, publish
from orchestrator.data.manifest import Manifest
from orchestrator.storage.base import open_storage
from orchestrator.testing import seaweedfs

MIB = 2**20
FOLDER, CLUSTER, S3, BARE, GZIP, RAW = (
    "ours, local folder",
    "ours, data.decode: cluster",
    "ours, SeaweedFS",
    "bare loop, decoding only",
    "DataLoader, HDF5 gzip",
    "DataLoader, HDF5 raw",
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    recorded: int
    """Recordings that all episodes are made of."""
    episodes: int
    rounds: int
    batches: dict[str, int]
    """Counted, per peer."""
    idle_s: float
    first_batch_tries: int
    selection_rows: int
    store_mib: int
    epochs: int


FULL = Size(
    corpus.RECORDED,
    100,
    3,
    {FOLDER: 400, CLUSTER: 400, S3: 400, BARE: 400, GZIP: 20, RAW: 250},
    20,
    3,
    1_000_000,
    320,
    10,
)
QUICK = Size(2, 12, 3, {FOLDER: 40, CLUSTER: 40, S3: 40, BARE: 40, GZIP: 2, RAW: 40}, 4, 1, 20_000, 90, 2)


@dataclass(frozen=True)
class Cost:
    """Of one clip, in one round."""

    milliseconds: dict[str, float]
    """CPU time by kind of process, with what idle Ray takes."""
    idle: float
    """The part that an idle Ray would have taken in the same time, in CPU milliseconds."""
    wall: float
    """Clips per second."""

    @property
    def total(self) -> float:
        return sum(self.milliseconds.values()) - self.idle


def cost(before: Mark, after: Mark, clips: int, idle_share: float = 0.0) -> Cost:
    wall = after.time - before.time
    used = {kind: 1000 * seconds / clips for kind, seconds in after.since(before).items()}
    return Cost(used, 1000 * idle_share * wall / clips, clips / wall)


def joined(ours: Child, s3: dict[str, str], idle_s: float) -> float:
    """Start Ray in the process of our pipeline; return the CPU seconds per second of an idle one."""
    (before, after), _ = ours.run(data_peers.join, s3, idle_s)
    return sum(after.since(before).values()) / (after.time - before.time)


def measured(
    size: Size,
    ours: Child,
    idle_share: float,
    stores: dict[str, str],
    files: dict[str, Path],
    s3: dict[str, str],
) -> tuple[dict[str, list[Cost]], float]:
    """Every peer's costs, round by round; bytes our pipeline read from S3 per clip."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    sent: list[float] = []
    with Child() as alone, Child() as loader:
        for number in range(size.rounds):
            # drift meets all alike
            for name, batches in list(size.batches.items())[:: -1 if number % 2 else 1]:
                clips = batches * data_peers.BATCH
                if name in stores:
                    already = seaweedfs.sent_bytes(s3)
                    marks, _ = ours.run(data_peers.pipeline, stores[name], batches, name == CLUSTER)
                    share = idle_share
                elif name == BARE:
                    (marks, _), share = alone.run(data_peers.bare, stores[FOLDER], batches), 0.0
                else:
                    (marks, _), share = loader.run(data_peers.hdf5, stores[FOLDER], files[name], batches), 0.0
                if name == S3:
                    sent.append(
                        (seaweedfs.sent_bytes(s3) - already) / (clips + data_peers.WARM_UP * data_peers.BATCH)
                    )
                costs[name].append(cost(marks[-2], marks[-1], clips, share))
    return costs, statistics.median(sent)


def _publish(uri: str, manifest: Manifest) -> None:
    """Make a manifest the next version of a store; its objects need not be there."""
    storage = open_storage(uri)
    publish(storage, manifest, latest_version(storage) + 1, len(manifest), "bench")


def first_batch(size: Size, ours: Child, uri: str, manifest: Manifest) -> tuple[float, float, float]:
    """Seconds until manifest, choice and first batch, from a manifest of 10,000 episodes."""
    _publish(uri, corpus.many_names(manifest, 10_000))
    tries: list[tuple[float, float, float]] = [
        ours.run(data_peers.first_batch, uri)[1] for _ in range(size.first_batch_tries)
    ]
    return min(
        tries, key=lambda seconds: abs(seconds[2] - statistics.median(sorted(other[2] for other in tries)))
    )


def selection(size: Size, folder: Path, manifest: Manifest) -> tuple[float, float]:
    """Seconds and GiB, in a fresh process."""
    _publish(str(folder), corpus.many_names(manifest, size.selection_rows))
    with Child() as child:
        answer: tuple[float, float] = child.run(data_peers.selection, str(folder), 200)[1]
    return answer


def memory(size: Size, uri: str) -> tuple[list[float], float]:
    """MiB that streaming takes at the most in each epoch, training side and fetching actor together; and the
    bound it should keep to.
    """
    with Child() as child:
        marks, bound = child.run(data_peers.epochs, uri, 80 * MIB, size.epochs)
    before = marks[0].peak[CONSUMER]
    return [(mark.peak[CONSUMER] - before + mark.peak[FETCHING]) / MIB for mark in marks[1:]], bound / MIB


def show_costs(costs: dict[str, list[Cost]], idle_share: float) -> None:
    """The table of peers, medians over rounds; CPU milliseconds per clip."""
    print(f"{'':<28} CPU ms/clip  {'/'.join((CONSUMER, FETCHING, RAY))}, idle Ray taken off   clips/s")
    for name, rounds in costs.items():
        total = statistics.median(each.total for each in rounds)
        parts = "/".join(
            f"{statistics.median(each.milliseconds.get(kind, 0.0) for each in rounds):.2f}"
            for kind in (CONSUMER, FETCHING, RAY)
        )
        idle = statistics.median(each.idle for each in rounds)
        split = f"{parts}, -{idle:.2f}" if idle else ""
        print(f"{name:<28} {total:11.2f}  {split:<58} {statistics.median(each.wall for each in rounds):9.0f}")
    print(f"an idle Ray of the same session uses {idle_share:.3f} CPU s per second\n")


def ratio(costs: dict[str, list[Cost]], above: str, below: str) -> float:
    """Median over rounds of the ratio of two peers' CPU time per clip."""
    return harness.median_ratio([cost.total for cost in costs[above]], [cost.total for cost in costs[below]])


@click.command()
@click.option("--quick", is_flag=True, help="End within a minute.")
def main(quick: bool) -> None:
    """Print the tables and, last, one line of JSON."""
    size = QUICK if quick else FULL
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("recorded", "weed", "store", "many", "heavy", "named"):
            (root / name).mkdir()
        s3 = stack.enter_context(seaweedfs.started(root / "weed"))
        os.environ.update(s3)
        ours = stack.enter_context(Child())
        idle_share = joined(ours, s3, size.idle_s)
        executor = stack.enter_context(ProcessPoolExecutor(2))
        recorded = corpus.recorded(root / "recorded", size.recorded)
        episodes = [corpus.variant(recorded, number) for number in range(size.episodes)]
        manifest = corpus.write_store(str(root / "store"), episodes, executor)
        files = {GZIP: root / "gzip.hdf5", RAW: root / "raw.hdf5"}
        list(executor.map(corpus.write_hdf5, files.values(), [episodes] * 2, ["gzip", None]))
        corpus.write_heavy_store(str(root / "heavy"), recorded[0], size.store_mib)
        stores = {
            FOLDER: str(root / "store"),
            CLUSTER: str(root / "store"),
            S3: f"s3://{seaweedfs.BUCKET}/lift",
        }
        copy(stores[FOLDER], stores[S3])
        stored = sum(entry.nbytes for entry in manifest.entries)
        raw = files[RAW].stat().st_size
        print(
            f"{size.episodes} episodes of {corpus.LENGTH} steps, 2 cameras of 128x128: {stored / MIB:.1f}"
            f" MiB, as raw HDF5 {raw / MIB:.0f}"
        )
        print(
            f"a clip is 9 frames of each camera; batches of {data_peers.BATCH}; {size.rounds} rounds in"
            " turns, medians\n"
        )
        costs, sent = measured(size, ours, idle_share, stores, files, s3)
        show_costs(costs, idle_share)
        loaded = raw_bytes(manifest, size.batches[FOLDER])
        visited = visit_bytes(manifest, size.batches[FOLDER])
        without = f"without the worker's cache {visited / 1024:.1f}"
        print(
            f"KiB read per clip: from S3 {sent / 1024:.1f} as the server counted ({without}), raw HDF5"
            f" {loaded / 1024:.0f}\n"
        )
        show_codecs(corpus.compare(recorded, 1 if quick else 10))
        firsts = first_batch(size, ours, stores[FOLDER], manifest)
        parts = ", ".join(
            f"{what} {seconds:.2f} s"
            for what, seconds in zip(("manifest", "chosen", "batch"), firsts, strict=True)
        )
        print(f"first batch of {data_peers.ARM_DEMOS:,} demos out of 10,000 episodes: {parts}")
        selected = selection(size, root / "many", manifest)
        print(
            f"selection, {size.selection_rows:,} manifest rows: {selected[0]:.2f} s, {selected[1]:.2f} GiB"
            " for the whole process"
        )
        peaks, bound = memory(size, str(root / "heavy"))
        shown = " ".join(f"{peak:.0f}" for peak in peaks)
        print(f"memory, {size.store_mib} MiB store, 80 MiB object store: at most {shown} MiB in its epochs,")
        print(
            f"interpreter and libraries of the fetching actor included; stream.memory_bound says {bound:.0f}"
            " for what is streamed\n"
        )
    answers = {
        "ratio_to_decode_limit": ratio(costs, BARE, FOLDER),
        "ratio_cluster_to_decode_limit": ratio(costs, BARE, CLUSTER),
        "ratio_to_hdf5_gzip": ratio(costs, GZIP, FOLDER),
        "ratio_to_hdf5_raw": ratio(costs, RAW, FOLDER),
        "bytes_ratio_to_hdf5_raw": loaded / sent,
        "ratio_s3_to_folder": ratio(costs, FOLDER, S3),
        "memory_growth_mib": peaks[-1] - peaks[1],
        "memory_bound_mib": bound,
        "first_batch_s": firsts[2],
        "selection_s": selected[0],
        "selection_gib": selected[1],
    }
    print(
        json.dumps(
            {"bench": "data", **{name: round(value, 3) for name, value in answers.items()}, "quick": quick}
        )
    )


def copy(source: str, target: str) -> None:
    """Every object of a store."""
    old, new = open_storage(source), open_storage(target)
    for key in old.list(""):
        new.put(key, old.get(key))


def raw_bytes(manifest: Manifest, batches: int) -> float:
    """Of pictures that the HDF5 loader reads per clip, for the clips of the counted batches."""
    frame = 3 * 128 * 128 * len(corpus.CAMERAS)
    clips = list(data_peers.draws(data_peers.order_of(manifest), batches))
    return (
        sum(len(data_peers.read_frames(draw.start, draw.visit.entry.length)) for draw in clips)
        * frame
        / len(clips)
    )


def visit_bytes(manifest: Manifest, batches: int) -> float:
    """That our pipeline would read per clip if it fetched the object anew at every visit."""
    clips = list(data_peers.draws(data_peers.order_of(manifest), batches))
    return sum(draw.visit.entry.nbytes for draw in clips if draw.opens) / len(clips)


def show_codecs(compared: dict[str, corpus.CodecCost]) -> None:
    print(f"{'':<42} KiB/100 frames  PSNR dB  decoded frames/CPU s")
    for name, kept in compared.items():
        print(f"{name:<42} {kept.kib:14.0f}  {kept.psnr:7.1f}  {kept.decoded:20.0f}")
    print()


if __name__ == "__main__":
    harness.run(main)
