"""Latents of a store's episodes through Ray Data: a pool of actors, each with a GPU where there are GPUs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data

from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.latent_cache import LatentEntry, encode_episodes
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import open_storage
from sim_workers.checkout import Files, check_imported, file_hashes

if TYPE_CHECKING:
    from policy.latent_codec import Latents

EPISODES_AT_ONCE = 4
"""Episodes that an actor takes at a time; it decodes one while it encodes another."""
CORES_PER_WORKER = 4
"""Cores of an actor on a cluster without GPUs."""


@dataclass(frozen=True)
class Encoders:
    """Actors that encode, and the resources of each."""

    number: int
    cpus: float
    gpus: float

    @classmethod
    def fit(cls, cluster: dict[str, float], episodes: int) -> "Encoders":
        """Return one actor per GPU of a cluster or, without GPUs, per CORES_PER_WORKER cores; no more than
        episodes. cluster: its resources (`CPU`, `GPU`).
        """
        cores, gpus = cluster.get("CPU", 1.0), int(cluster.get("GPU", 0))
        number = max(1, min(gpus or int(cores // CORES_PER_WORKER), -(-episodes // EPISODES_AT_ONCE)))
        return cls(number, max(1.0, cores // number) if not gpus else 1.0, 1.0 if gpus else 0.0)

    def __str__(self) -> str:
        each = "a GPU" if self.gpus else f"{self.cpus:g} core{'s' if self.cpus > 1 else ''}"
        return f"{self.number} worker{'s' if self.number > 1 else ''} with {each} each"


def encode_on_cluster(
    uri: str,
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
    entries: Sequence[EpisodeEntry],
    open_codec: Callable[[], "Latents"],
    fingerprint: str,
    encoders: Encoders,
) -> Iterator[LatentEntry | EpisodeError]:
    """Encode episodes on a connected cluster as `latent_cache.encode_episodes` does, in any order.

    open_codec: loads the codec in an actor. Raises Ray's error of an actor whose weights have another
    fingerprint.
    """
    if not entries:
        return
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        made = ray.data.from_items(
            [{"episode": number} for number in range(len(entries))],
            override_num_blocks=-(-len(entries) // EPISODES_AT_ONCE),
        ).map_batches(
            _Encode,
            fn_constructor_args=(
                uri,
                cameras,
                image_size,
                tuple(entries),
                open_codec,
                fingerprint,
                encoders.gpus,
                file_hashes(),
            ),
            batch_size=EPISODES_AT_ONCE,
            batch_format="pyarrow",
            num_cpus=encoders.cpus if not encoders.gpus else None,
            num_gpus=encoders.gpus or None,
            compute=ray.data.ActorPoolStrategy(size=encoders.number),
        )
    for row in made.iter_rows():
        problem = row.pop("problem")
        yield EpisodeError(problem) if problem else LatentEntry(**row)


class _Encode:
    """Stage that takes numbers of episodes, writes their latents and returns their rows of the index, or the
    sentence of an EpisodeError.
    """

    def __init__(
        self,
        uri: str,
        cameras: tuple[str, ...],
        image_size: tuple[int, int],
        entries: tuple[EpisodeEntry, ...],
        open_codec: Callable[[], "Latents"],
        fingerprint: str,
        gpus: float,
        code: Files,
    ) -> None:
        check_imported(code)
        import torch

        self._storage, self._cameras, self._entries = open_storage(uri), cameras, entries
        self._codec, self._fingerprint = open_codec(), fingerprint
        self._device = torch.device("cuda" if gpus else "cpu")
        if (found := self._codec.fingerprint(image_size)) != fingerprint:
            raise RuntimeError(
                f"the autoencoder on this node has the fingerprint {found}, expected is {fingerprint}; name"
                " weights that are the same on all nodes"
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        entries = [self._entries[number] for number in block["episode"].to_pylist()]
        rows: list[dict[str, Any]] = []
        for found in encode_episodes(
            self._storage, self._cameras, entries, self._codec, self._fingerprint, self._device
        ):
            if isinstance(found, EpisodeError):
                rows.append({"episode": "", "key": "", "nbytes": 0, "sha256": "", "problem": str(found)})
            else:
                rows.append({**vars(found), "problem": ""})
        return pa.Table.from_pylist(rows)
