"""Fidelity of generated video: a checkpoint continues held-out clips from their first frame, compared with
the recorded frames.

video/<checkpoint>/<digest>.json     one checkpoint's score; the digest covers clips, sampler and measures

Scores with different digests are not comparable and are never mixed.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.data.clips import Clip
from orchestrator.evaluation.held_out_clips import HeldOut
from orchestrator.evaluation.image_metrics import MEASURES, Fidelity, fidelity
from orchestrator.provenance import digest
from orchestrator.storage.base import Storage
from orchestrator.storage.notes import read_json_object
from policy.config import SamplerConfig
from policy.interface import Imagination, Observation

ASKED_AT_ONCE = 8
"""Clips queried in parallel: a batch few enough that simulators do not wait long behind it."""


@dataclass(frozen=True)
class VideoScore:
    """Means of the measures over clips, cameras and frames."""

    generated: Fidelity
    still: Fidelity
    """Baseline: the first frame repeated, without which the other numbers have no reference."""
    clips: int
    digest: str
    """`VideoBenchmark.digest`; scores with equal digests are comparable."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics for MLflow: video_psnr, video_psnr_still and so on. video_clips_id is the digest's first 48
        bits, since metrics are numbers.
        """
        kinds = {"": self.generated, "_still": self.still}
        values = {
            f"video_{name}{kind}": value
            for kind, measured in kinds.items()
            for name, value in asdict(measured).items()
        }
        return {
            **values,
            "video_clips": float(self.clips),
            "video_clips_id": float(int(self.digest[:12], 16)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "VideoScore":
        """Invert `to_json`."""
        return cls(Fidelity(**data["generated"]), Fidelity(**data["still"]), data["clips"], data["digest"])

    def __str__(self) -> str:
        made, still = self.generated, self.still
        return (
            f"PSNR {made.psnr:.1f} dB, SSIM {made.ssim:.2f}, distance {made.distance:.2f} on {self.clips}"
            f" held-out clips (a still picture {still.psnr:.1f} dB, {still.ssim:.2f}, {still.distance:.2f})"
        )


@dataclass(frozen=True)
class VideoBenchmark:
    """The clips, the sampler and the measures of a video score."""

    held_out: HeldOut
    sampler: SamplerConfig
    """Sampler of the rung on which the checkpoints act."""

    @property
    def digest(self) -> str:
        """Hash of clips, sampler and the installed versions of the measures."""
        return self.digest_with(MEASURES)

    def digest_with(self, measures: tuple[str, ...]) -> str:
        """Return the digest of scores measured with these package versions, in the form of
        `image_metrics.MEASURES`.
        """
        return digest([self.held_out.digest, self.sampler.model_dump(mode="json"), measures])

    def known(self, storage: Storage, checkpoint: str) -> VideoScore | None:
        """Return the stored score of a checkpoint, given its fingerprint; None if there is none."""
        key = self._key(checkpoint)
        return VideoScore.from_json(read_json_object(storage, key)) if storage.exists(key) else None

    def keep(self, storage: Storage, checkpoint: str, score: VideoScore) -> None:
        """Write the score of a checkpoint, given its fingerprint, unless there is one."""
        storage.put_if_absent(self._key(checkpoint), json.dumps(score.to_json(), indent=1).encode())

    def _key(self, checkpoint: str) -> str:
        return f"video/{checkpoint}/{self.digest}.json"

    def measure(self, imagine: Callable[[Observation], Imagination]) -> VideoScore:
        """Score the video that `imagine` returns, called by ASKED_AT_ONCE threads. Raises EpisodeError if a
        clip is damaged.
        """
        made: list[Fidelity] = []
        still: list[Fidelity] = []
        cameras, places = self.held_out.contract.cameras, self.held_out.clips
        with ThreadPoolExecutor(ASKED_AT_ONCE) as asking:
            for first in range(0, len(places), ASKED_AT_ONCE):
                clips = [self.held_out.read(place) for place in places[first : first + ASKED_AT_ONCE]]
                futures = asking.map(imagine, [first_look(clip, cameras) for clip in clips])
                for clip, future in zip(clips, futures, strict=True):
                    real_VKHW3 = clip.frames
                    shown_VFHW3 = np.stack([future.frames[camera] for camera in cameras])
                    repeated_VFHW3 = np.repeat(real_VKHW3[:, :1], shown_VFHW3.shape[1], axis=1)
                    for one, of in ((shown_VFHW3, made), (repeated_VFHW3, still)):
                        of.append(
                            fidelity(
                                one.reshape(-1, *one.shape[2:]), real_VKHW3[:, 1:].reshape(-1, *one.shape[2:])
                            )
                        )
        return VideoScore(Fidelity.mean(made), Fidelity.mean(still), len(places), self.digest)


def first_look(clip: Clip, cameras: tuple[str, ...]) -> Observation:
    """Return the observation at the clip's first frame, with the clip's noise seed."""
    images = dict(zip(cameras, clip.frames[:, 0], strict=True))
    return Observation(images, clip.proprio, clip.episode.instruction, clip.seed)
