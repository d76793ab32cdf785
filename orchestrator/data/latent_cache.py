"""Cache of a frozen encoder's outputs for a store's episodes, computed once and kept in the store.

    latents/<codec>/<episode's sha256>/<sha256>.parquet    the episode with latents in place of pictures,
                                                           orchestrator/data/episode_format.py
    latents/<codec>/index/<manifest>.parquet               one row per episode of a manifest: key, nbytes,
                                                           sha256; written last
    text/<encoder>/<manifest>-<sha256>.safetensors         every sentence of a manifest as the token that a
                                                           video model attends to

<codec> and <encoder> are fingerprints of the weights, <manifest> is the manifest's. Valid objects never
change: their content is determined by their names. Several processes may fill one store, and a killed one can
be restarted. A merged manifest (`merged_store.py`) has no latents of its own: those of its parts
are in their stores. (An episode may then have two objects, if two kinds of GPU rounded differently; an index
names one.)
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episode_format import Episode, EpisodeError, decode, encode_latents, read_parquet
from orchestrator.data.episode_store import fetch, fetchable
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.storage.base import NoObject, Storage, check_conditional_writes, open_storage

if TYPE_CHECKING:
    import torch

    from policy.latent_codec import Latents
    from policy.text_encoder import SentenceEncoder

AGAIN = "run `demoscale encode` again"
PICTURES = 64  # decoded pictures sent to the device at a time
INDEX = pa.schema(
    [("episode", pa.string()), ("key", pa.string()), ("nbytes", pa.int64()), ("sha256", pa.string())]
)


@dataclass(frozen=True)
class LatentEntry:
    """Row of an index: the latents of one episode."""

    episode: str
    """SHA-256 of the episode that was encoded."""
    key: str
    nbytes: int
    sha256: str


def picture_bytes(codec: "Latents", image_size: tuple[int, int]) -> int:
    """Return the bytes of the latents of one picture of one camera."""
    return 2 * codec.stored_channels * (image_size[0] // codec.patch) * (image_size[1] // codec.patch)


# -- latents: writing ----------------------------------------------------------------------------------------


def write_latents(
    storage: Storage, manifest: Manifest, codec: "Latents", fingerprint: str, device: "torch.device"
) -> Iterator[LatentEntry | EpisodeError]:
    """Encode all frames and cameras of every episode of a manifest that is not encoded yet; yield one result
    per episode, in any order.

    The result is an EpisodeError for an episode that is missing or damaged.
    """
    known, missing = encoded_before(storage, manifest, fingerprint)
    yield from known
    yield from encode_episodes(storage, manifest.contract.cameras, missing, codec, fingerprint, device)


def encoded_before(
    storage: Storage, manifest: Manifest, fingerprint: str
) -> tuple[list[LatentEntry], list[EpisodeEntry]]:
    """Return the rows of a manifest's episodes that an index of the codec names, and the other episodes,
    shuffled, so that concurrent processes rarely encode the same one.
    """
    check_conditional_writes(storage)
    rows = {
        row.episode: row
        for key in storage.list(f"latents/{fingerprint}/index/")
        for row in _rows(storage, key)
    }
    entries = list(manifest.entries)
    missing = [entry for entry in entries if entry.sha256 not in rows]
    random.shuffle(missing)
    return [rows[entry.sha256] for entry in entries if entry.sha256 in rows], missing


def encode_episodes(
    storage: Storage,
    cameras: tuple[str, ...],
    entries: Sequence[EpisodeEntry],
    codec: "Latents",
    fingerprint: str,
    device: "torch.device",
) -> Iterator[LatentEntry | EpisodeError]:
    """Encode episodes and yield one result each, in order, as `write_latents` does. The next episode is
    fetched and decoded while one is encoded.
    """

    def source(entry: EpisodeEntry) -> LatentEntry | Episode | EpisodeError:
        """Return the episode's latents if they are complete, else its pictures, else the error."""
        try:
            found = _found(storage, fingerprint, entry)
            return found or decode(fetch(storage, entry), cameras, with_actions=entry.labelled)
        except EpisodeError as error:
            return error

    with ThreadPoolExecutor(1) as ahead:
        following: Future[LatentEntry | Episode | EpisodeError] | None = (
            ahead.submit(source, entries[0]) if entries else None
        )
        for i, entry in enumerate(entries):
            assert following is not None
            found = following.result()
            following = ahead.submit(source, entries[i + 1]) if i + 1 < len(entries) else None
            if isinstance(found, Episode):
                yield _write(storage, fingerprint, entry, _encoded(found, codec, device))
            else:
                yield found


def _found(storage: Storage, fingerprint: str, entry: EpisodeEntry) -> LatentEntry | None:
    """Return the row of a complete object that a killed or a concurrent process wrote; None without one."""
    for key in storage.list(f"latents/{fingerprint}/{entry.sha256}/"):
        data = storage.get(key)
        if _row(fingerprint, entry, data).key == key:
            return _row(fingerprint, entry, data)
    return None


def _row(fingerprint: str, entry: EpisodeEntry, data: bytes) -> LatentEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    return LatentEntry(
        entry.sha256, f"latents/{fingerprint}/{entry.sha256}/{sha256}.parquet", len(data), sha256
    )


def _encoded(episode: Episode, codec: "Latents", device: "torch.device") -> bytes:
    return encode_latents(
        replace(
            episode,
            frames={name: _latents(pictures, codec, device) for name, pictures in episode.frames.items()},
        )
    )


def _latents(
    pictures_LHW3: npt.NDArray[np.uint8], codec: "Latents", device: "torch.device"
) -> npt.NDArray[np.float16]:
    import torch

    some = (
        torch.from_numpy(pictures_LHW3[i : i + PICTURES]).to(device)
        for i in range(0, len(pictures_LHW3), PICTURES)
    )
    latents: npt.NDArray[np.float16] = np.concatenate(
        [codec.encode(pictures).cpu().numpy() for pictures in some]
    )
    return latents


def _write(storage: Storage, fingerprint: str, entry: EpisodeEntry, data: bytes) -> LatentEntry:
    row = _row(fingerprint, entry, data)
    if not storage.put_if_absent(row.key, data) and storage.get(row.key) != data:
        storage.put(row.key, data)  # the existing object is damaged
    return row


def publish_index(
    storage: Storage, manifest: Manifest, fingerprint: str, rows: Iterable[LatentEntry]
) -> None:
    """Publish the index of the latents of all of a manifest's episodes. An existing index stays."""
    table = pa.Table.from_pylist([vars(row) for row in sorted(rows, key=lambda row: row.episode)], INDEX)
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({"demoscale.digest": _digest(table)}), buffer, compression="zstd"
    )
    storage.put_if_absent(_index_key(manifest.fingerprint, fingerprint), buffer.getvalue().to_pybytes())


def _index_key(version: str, fingerprint: str) -> str:
    return f"latents/{fingerprint}/index/{version}.parquet"


def _digest(table: pa.Table) -> str:
    return hashlib.sha256(
        "\n".join(" ".join(map(str, row.values())) for row in table.to_pylist()).encode()
    ).hexdigest()


# -- latents: reading ----------------------------------------------------------------------------------------


def _rows(storage: Storage, key: str) -> list[LatentEntry]:
    """Return the rows of an index. Raises EpisodeError if it is damaged."""
    data = storage.get(key)
    try:
        table = read_parquet(data)
        whole = pq.ParquetFile(pa.BufferReader(data)).schema_arrow.metadata[
            b"demoscale.digest"
        ].decode() == _digest(table)
    except (pa.ArrowException, OSError, KeyError, TypeError):
        whole = False
    if not whole:
        raise EpisodeError(f"{storage.uri}: the index of latents is damaged; delete {key} and {AGAIN}")
    return [LatentEntry(**row) for row in table.to_pylist()]


def latent_entries(
    storage: Storage, manifest: Manifest, fingerprint: str, entries: Iterable[EpisodeEntry]
) -> list[EpisodeEntry]:
    """Return the entries with the objects of their latents, which orders and streams accept as episodes; ids
    and lengths stay.

    Raises EpisodeError if the manifest, or a part of a merged one, has no index for the codec of that
    fingerprint, or a damaged one.
    """
    rows = dict[str, LatentEntry]()
    for place, version in _places(storage, manifest):
        try:
            found = _rows(place, _index_key(version, fingerprint))
        except NoObject:
            raise EpisodeError(
                f"{place.uri}: the pictures of this version are not encoded yet, or not by these weights;"
                f" {AGAIN}"
            ) from None
        for row in found:
            rows[row.episode] = replace(row, key=fetchable(place.uri, row.key)) if manifest.parts else row
    return [
        replace(entry, key=row.key, offset=0, nbytes=row.nbytes, sha256=row.sha256)
        for entry in entries
        for row in [rows[entry.sha256]]
    ]


def has_latents(storage: Storage, manifest: Manifest, fingerprint: str) -> bool:
    """Return whether the latents of all of a manifest's episodes are published, of a merged one by the stores
    of all its parts.
    """
    return not _without(storage, manifest, fingerprint)


def latents_beside(storage: Storage, manifest: Manifest) -> list[str]:
    """Return the URIs of the stores that have latents of a manifest's episodes, by any weights."""
    return [
        place.uri
        for place, version in _places(storage, manifest)
        if any(key.endswith(f"/index/{version}.parquet") for key in place.list("latents/"))
    ]


def why_pictures(
    storage: Storage, manifest: Manifest, fingerprint: str, entries: Iterable[EpisodeEntry]
) -> str:
    """Return why these episodes are read as pictures and not as latents, in a sentence; empty if they need
    not be.
    """
    contract = manifest.contract
    if lacking := _without(storage, manifest, fingerprint):
        return (
            f"there are no latents by these weights in {', '.join(lacking)}; `demoscale encode` writes them"
        )
    for entry in entries:
        if entry.cameras != contract.cameras or entry.image_size != contract.image_size:
            return (
                f"{entry.episode_id} has other cameras or another picture size than the demos, whose pictures"
                " are not those of its latents"
            )
    return ""


def _without(storage: Storage, manifest: Manifest, fingerprint: str) -> list[str]:
    """Return the URIs of the stores that lack the latents of a manifest's episodes."""
    return [
        place.uri
        for place, version in _places(storage, manifest)
        if not place.exists(_index_key(version, fingerprint))
    ]


def _places(storage: Storage, manifest: Manifest) -> list[tuple[Storage, str]]:
    """Return pairs (store, fingerprint of its manifest) of what a manifest's episodes were encoded in."""
    if not manifest.parts:
        return [(storage, manifest.fingerprint)]
    stores = dict.fromkeys((part.store, part.fingerprint) for part in manifest.parts)
    return [(open_storage(uri), version) for uri, version in stores]


# -- sentences -----------------------------------------------------------------------------------------------


def write_sentences(
    storage: Storage, manifest: Manifest, encoder: "SentenceEncoder", fingerprint: str
) -> int:
    """Embed every distinct instruction of a manifest, store them in one object, and return their number.

    Sentences that are cached for another manifest are not embedded again.
    """
    from safetensors.torch import save

    sentences = sorted(set(manifest.column("instruction").to_pylist()))
    for key in storage.list(f"text/{fingerprint}/"):
        encoder.known.update(_sentences(storage, key))
    embedded = encoder.embed(sentences)[:, 0]
    data = save({"sentences": _as_bytes("\0".join(sentences)), "tokens": embedded.contiguous()})
    sha256 = hashlib.sha256(data).hexdigest()
    storage.put_if_absent(f"text/{fingerprint}/{manifest.fingerprint}-{sha256}.safetensors", data)
    return len(sentences)


def _as_bytes(text: str) -> "torch.Tensor":
    import torch

    return torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)


def _sentences(storage: Storage, key: str) -> dict[str, "torch.Tensor"]:
    from safetensors.torch import load

    data = storage.get(key)
    if hashlib.sha256(data).hexdigest() != key.rpartition("-")[2].removesuffix(".safetensors"):
        raise EpisodeError(
            f"{storage.uri}: the cached sentence embeddings are damaged; delete {key} and {AGAIN}"
        )
    tensors = load(data)
    return dict(
        zip(bytes(tensors["sentences"].tolist()).decode().split("\0"), tensors["tokens"], strict=True)
    )


def read_sentences(
    storage: Storage, manifest: Manifest, fingerprint: str | None = None
) -> dict[str, "torch.Tensor"]:
    """Return sentence -> (dim,) for every instruction of a manifest, for
    `policy.text_encoder.sentence_encoder`; empty if not embedded.

    Without a fingerprint, those of the only encoder. Of a merged manifest they are those that its parts'
    stores have. Raises EpisodeError if there are several encoders, or an object is damaged.
    """
    found, encoders = dict[str, "torch.Tensor"](), set[str]()
    for place, version in _places(storage, manifest):
        keys = [
            key
            for key in place.list(f"text/{fingerprint}/" if fingerprint else "text/")
            if f"/{version}-" in key
        ]
        encoders |= {key.split("/")[1] for key in keys}
        if len(encoders) > 1:
            raise EpisodeError(
                f"{place.uri}: sentences were embedded by several encoders; name one, or delete text/ and"
                f" {AGAIN}"
            )
        found |= _sentences(place, keys[0]) if keys else {}
    return found
