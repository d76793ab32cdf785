"""Clips of episodes that no arm of a sweep trains on; every checkpoint's generated video is measured
on them.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.clips import Clip, cut_clip, shown_frames
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.subset import held_out
from orchestrator.provenance import digest
from orchestrator.storage.base import open_storage
from policy.config import ClipShape
from policy.interface import Contract, derived_seed


@dataclass(frozen=True)
class HeldOutClip:
    """Location of a clip; small, since it is pickled to the process that measures."""

    episode: EpisodeEntry
    start: int
    """First frame within the episode, the only one that the policy observes."""


@dataclass(frozen=True)
class HeldOut:
    """A fixed set of clips, the same for every checkpoint of a sweep."""

    episodes: str
    """URI of the episode store."""
    contract: Contract
    shape: ClipShape
    clips: tuple[HeldOutClip, ...]
    proprio: tuple[int, ...] | None = None
    """Indices of the store's proprioceptive values that policies get; None: all."""

    @classmethod
    def choose(
        cls,
        episodes: str,
        manifest: Manifest,
        tasks: Iterable[str],
        per_task: int,
        used: Set[str],
        shape: ClipShape,
    ) -> "HeldOut":
        """Choose one clip from each of the last `per_task` episodes of every task that are not `used`.

        A clip's start is derived from its episode's hash, such that the whole clip lies within the episode.
        Raises SubsetError if too few episodes are left.
        """
        span = shape.frame_stride * (shape.frames_per_view - 1)
        ids = [
            episode
            for task in tasks
            for episode in held_out(manifest, task, per_task, used, shortest=span + 1)
        ]
        entries = manifest.select(ids, with_stats=False)
        clips = (
            HeldOutClip(entry, derived_seed(int(entry.sha256[:12], 16)) % (entry.length - span))
            for entry in entries
        )
        return cls(episodes, manifest.contract, shape, tuple(clips))

    @property
    def digest(self) -> str:
        """Hash of episodes, starts, cameras and clip shape: equal for equal pictures."""
        shape = [self.shape.frames_per_view, self.shape.frame_stride]
        return digest(
            [[(clip.episode.sha256, clip.start) for clip in self.clips], self.contract.cameras, shape]
        )

    def read(self, clip: HeldOutClip) -> Clip:
        """Return the clip's pictures, without actions. Raises EpisodeError if the episode is missing or
        damaged.
        """
        data = fetch(open_storage(self.episodes), clip.episode)
        wanted = shown_frames([clip.start], clip.episode.length, self.shape)[0]
        cut = cut_clip(
            decode_entry(data, clip.episode, self.contract, with_actions=False, wanted=wanted.tolist()),
            clip.start,
            self.shape,
            self.contract,
        )
        return cut if self.proprio is None else replace(cut, proprio=cut.proprio[list(self.proprio)])
