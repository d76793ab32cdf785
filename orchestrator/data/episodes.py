"""Episodes at rest: one immutable, content-addressed object each, listed by a versioned manifest.

    objects/<first two of sha256>/<sha256>.parquet   one row: an MP4 per camera, proprioception, actions (null when action-free), text
    manifests/<fingerprint>.parquet                  one row per episode: where it is, how long, which task, its statistics
    versions/000001.json                             names a manifest; claimed by a conditional write, so two writers never lose one

Readable with pyarrow, pandas or duckdb. Whoever reads an episode as action-free never reads its action column.
"""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter

from orchestrator.storage import Storage, StorageError
from policy.interface import Contract
from policy.stats import Stats

SCHEMA_VERSION = "1"
# Chroma at full resolution: the object a policy looks for is a few coloured pixels. A key frame every 8 keeps random access cheap.
CODEC, PIXEL_FORMAT = "libx264", "yuv444p"
CODEC_OPTIONS = {"crf": "10", "preset": "medium", "g": "8", "bf": "0"}


class EpisodeError(Exception):
    """One sentence: which episode of which store, what is wrong, and the mend."""


@dataclass(frozen=True)
class Episode:
    """One demonstration, or one recording without actions, in memory. L frames, one per control step."""

    episode_id: str
    task: str
    instruction: str
    frames: dict[str, npt.NDArray[np.uint8]]
    """Per camera (L, H, W, 3) RGB."""
    proprio: npt.NDArray[np.float32]
    """(L, P)."""
    action: npt.NDArray[np.float32] | None
    """(L, A): the demonstrator's action at each frame; None when nobody recorded any, or nobody may see it."""
    success: bool
    source: str
    """What made it: the command or file, with its seed."""

    @property
    def length(self) -> int:
        return len(self.proprio)


@dataclass(frozen=True)
class EpisodeEntry:
    """One row of the manifest."""

    episode_id: str
    key: str
    nbytes: int
    sha256: str
    length: int
    task: str
    instruction: str
    labelled: bool
    success: bool
    source: str
    proprio_stats: Stats
    action_stats: Stats | None


@dataclass(frozen=True)
class Manifest:
    """A version of a store: which episodes it holds and under which conventions they were recorded."""

    contract: Contract
    entries: tuple[EpisodeEntry, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for equal content, whatever the order of writing."""
        lines = sorted(f"{e.episode_id} {e.sha256} {e.length} {e.labelled}" for e in self.entries)
        text = json.dumps([self.contract.to_json(), lines], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __getitem__(self, episode_id: str) -> EpisodeEntry:
        for entry in self.entries:
            if entry.episode_id == episode_id:
                return entry
        raise EpisodeError(f"the store has no episode {episode_id}")


# -- one episode <-> bytes ------------------------------------------------------------------------------------------------------


def _encode_video(frames_LHW3: npt.NDArray[np.uint8], hz: float) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(CODEC, rate=Fraction(hz).limit_denominator(1000), options=CODEC_OPTIONS)
        stream.height, stream.width = frames_LHW3.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        stream.codec_context.thread_count = 1  # many workers run at once; and the bytes must not depend on the machine's cores
        for picture in frames_LHW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _decode_video(data: bytes) -> npt.NDArray[np.uint8]:
    reformatter = VideoReformatter()  # one for all frames: a new one per frame costs more than the decoding
    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        pictures = [reformatter.reformat(frame, format="rgb24").to_ndarray() for frame in container.decode(video=0)]
    return np.stack(pictures).astype(np.uint8, copy=False)


def _read_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """On the caller's thread: `pyarrow.parquet.read_table` starts threads that abort a process which ends soon afterwards."""
    return pq.ParquetFile(io.BytesIO(data)).read(columns=columns, use_threads=False)


def _rows(array: npt.NDArray[np.float32] | None) -> list[list[float]] | None:
    return None if array is None else array.astype(np.float32).tolist()


def encode(episode: Episode, hz: float) -> bytes:
    """The episode as a one-row Parquet file. Equal episodes give equal bytes."""
    vectors = pa.list_(pa.list_(pa.float32()))
    columns = {
        "episode_id": pa.array([episode.episode_id]),
        "task": pa.array([episode.task]),
        "instruction": pa.array([episode.instruction]),
        "success": pa.array([episode.success]),
        "source": pa.array([episode.source]),
        "proprio": pa.array([_rows(episode.proprio)], vectors),
        "action": pa.array([_rows(episode.action)], vectors),
        **{f"cam.{name}": pa.array([_encode_video(frames, hz)], pa.binary()) for name, frames in episode.frames.items()},
    }
    metadata = {"demoscale.schema": SCHEMA_VERSION, "demoscale.hz": str(hz)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer, compression="none", store_schema=False)
    return buffer.getvalue()


def decode(data: bytes, cameras: tuple[str, ...], with_actions: bool) -> Episode:
    """The episode with the named cameras. Without `with_actions` the action column is not touched."""
    columns = ["episode_id", "task", "instruction", "success", "source", "proprio", *(f"cam.{name}" for name in cameras)]
    row = _read_parquet(data, columns + ["action"] * with_actions).to_pylist()[0]
    action = row.get("action")
    return Episode(
        episode_id=row["episode_id"],
        task=row["task"],
        instruction=row["instruction"],
        frames={name: _decode_video(row[f"cam.{name}"]) for name in cameras},
        proprio=np.asarray(row["proprio"], np.float32),
        action=None if action is None else np.asarray(action, np.float32),
        success=row["success"],
        source=row["source"],
    )


def fetch(storage: Storage, key: str, sha256: str, episode_id: str) -> bytes:
    """An episode's object, checked: a flipped bit in a video decodes without complaint, so the hash is the only guard."""
    data = storage.get(key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise EpisodeError(f"{storage.uri}: episode {episode_id} is damaged ({key} has {len(data)} bytes and another sha256); restore the object")
    return data


# -- the store ------------------------------------------------------------------------------------------------------------------


def put_episode(storage: Storage, episode: Episode, hz: float) -> EpisodeEntry:
    """Write the object (once: equal content has one key) and return its manifest row; a later `commit` makes it visible."""
    data = encode(episode, hz)
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"objects/{sha256[:2]}/{sha256}.parquet"
    storage.put_if_absent(key, data)
    return EpisodeEntry(
        episode_id=episode.episode_id,
        key=key,
        nbytes=len(data),
        sha256=sha256,
        length=episode.length,
        task=episode.task,
        instruction=episode.instruction,
        labelled=episode.action is not None,
        success=episode.success,
        source=episode.source,
        proprio_stats=Stats.of(episode.proprio),
        action_stats=None if episode.action is None else Stats.of(episode.action),
    )


def _manifest_bytes(manifest: Manifest) -> bytes:
    rows = []
    for entry in sorted(manifest.entries, key=lambda e: e.episode_id):
        stats = {"proprio": entry.proprio_stats.to_json(), "action": entry.action_stats.to_json() if entry.action_stats else None}
        rows.append({**{k: v for k, v in vars(entry).items() if not k.endswith("_stats")}, "stats": json.dumps(stats)})
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"demoscale.contract": json.dumps(manifest.contract.to_json())})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _manifest_from(data: bytes) -> Manifest:
    table = _read_parquet(data)
    entries = []
    for row in table.to_pylist():
        stats = json.loads(row.pop("stats"))
        action = Stats.from_json(stats["action"]) if stats["action"] else None
        entries.append(EpisodeEntry(**row, proprio_stats=Stats.from_json(stats["proprio"]), action_stats=action))
    return Manifest(Contract.from_json(json.loads(table.schema.metadata[b"demoscale.contract"])), tuple(entries))


def latest_version(storage: Storage) -> int:
    """Number of the newest version; 0 for a store nobody committed to."""
    versions = storage.list("versions/")
    return int(versions[-1].removeprefix("versions/").removesuffix(".json")) if versions else 0


def load_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """The manifest of a version (the newest by default)."""
    version = latest_version(storage) if version is None else version
    if version == 0:
        raise EpisodeError(f"{storage.uri}: there is no episode store here; record one with `python -m jobs.collect`, or correct data.episodes")
    try:
        fingerprint = json.loads(storage.get(f"versions/{version:06d}.json"))["manifest"]
        return _manifest_from(storage.get(f"manifests/{fingerprint}.parquet"))
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise EpisodeError(f"{storage.uri}: version {version} of the store is damaged ({type(error).__name__}); restore its manifest") from None


def commit(storage: Storage, contract: Contract, entries: list[EpisodeEntry]) -> Manifest:
    """Make episodes visible in a new version, beside those already there. An episode id already taken keeps its first content."""
    while True:
        version = latest_version(storage)
        old = load_manifest(storage, version) if version else Manifest(contract, ())
        if different := old.contract.mismatches(contract):
            raise EpisodeError(f"{storage.uri}: the store was recorded with other conventions ({'; '.join(different)}); use another folder")
        known = {entry.episode_id for entry in old.entries}
        merged = replace(old, entries=(*old.entries, *(entry for entry in entries if entry.episode_id not in known)))
        if len(merged.entries) == len(known):
            return old
        storage.put_if_absent(f"manifests/{merged.fingerprint}.parquet", _manifest_bytes(merged))
        if storage.put_if_absent(f"versions/{version + 1:06d}.json", json.dumps({"manifest": merged.fingerprint}).encode()):
            return merged


def store_exists(storage: Storage) -> bool:
    """Whether anything was ever committed here."""
    try:
        return latest_version(storage) > 0
    except StorageError:
        return False
