"""How good the video is that a checkpoint generates: held-out clips continued from their first frame, beside what really happened.

video/<checkpoint>/<digest>.json     one checkpoint's score; the digest names the clips, the rung and the measures

A score of other clips has another digest and is another number: the two are never mixed.
"""

import json
import time
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
from policy.config import SamplerConfig
from policy.interface import Imagination, Observation
from sim_workers.checkout import Files, check_imported
from sim_workers.rollout.policy_clients import PolicySource

ASKED_AT_ONCE = 8
"""Clips that a policy is asked about together: whole blocks, and few enough that no simulator waits long behind them."""


@dataclass(frozen=True)
class VideoScore:
    """Means over clips, cameras and frames."""

    generated: Fidelity
    still: Fidelity
    """Of a trivial predictor, the first frame repeated: without it no number says whether the video is good."""
    clips: int
    digest: str
    """Scores with equal ones may be compared."""

    @property
    def metrics(self) -> dict[str, float]:
        """As MLflow has them: video_psnr, video_psnr_still and so on. video_clips_id is the digest's first 48 bits, for metrics are numbers."""
        kinds = {"": self.generated, "_still": self.still}
        values = {f"video_{name}{kind}": value for kind, measured in kinds.items() for name, value in asdict(measured).items()}
        return {**values, "video_clips": float(self.clips), "video_clips_id": float(int(self.digest[:12], 16))}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "VideoScore":
        return cls(Fidelity(**data["generated"]), Fidelity(**data["still"]), data["clips"], data["digest"])

    def __str__(self) -> str:
        made, still = self.generated, self.still
        return (
            f"PSNR {made.psnr:.1f} dB, SSIM {made.ssim:.2f}, distance {made.distance:.2f} on {self.clips} held-out clips "
            f"(a still picture {still.psnr:.1f} dB, {still.ssim:.2f}, {still.distance:.2f})"
        )


@dataclass(frozen=True)
class VideoTest:
    """What a checkpoint's video is held against, and how it is generated and measured."""

    held_out: HeldOut
    sampler: SamplerConfig
    """Of the rung on which the checkpoints act."""

    @property
    def digest(self) -> str:
        return self.digest_with(MEASURES)

    def digest_with(self, measures: tuple[str, ...]) -> str:
        """Return the digest that scores have whose measures come from these package versions, as `fidelity.MEASURES` lists them."""
        return digest([self.held_out.digest, self.sampler.model_dump(mode="json"), measures])

    def known(self, storage: Storage, checkpoint: str) -> VideoScore | None:
        """What was measured before for a checkpoint (its fingerprint)."""
        key = self._key(checkpoint)
        return VideoScore.from_json(json.loads(storage.get(key))) if storage.exists(key) else None

    def keep(self, storage: Storage, checkpoint: str, score: VideoScore) -> None:
        """For good: the first one stays."""
        storage.put_if_absent(self._key(checkpoint), json.dumps(score.to_json(), indent=1).encode())

    def _key(self, checkpoint: str) -> str:
        return f"video/{checkpoint}/{self.digest}.json"

    def measure(self, imagine: Callable[[Observation], Imagination]) -> VideoScore:
        """Of whatever imagines; it is asked by ASKED_AT_ONCE threads. EpisodeError for a damaged clip."""
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
                        of.append(fidelity(one.reshape(-1, *one.shape[2:]), real_VKHW3[:, 1:].reshape(-1, *one.shape[2:])))
        return VideoScore(Fidelity.mean(made), Fidelity.mean(still), len(places), self.digest)


def first_look(clip: Clip, cameras: tuple[str, ...]) -> Observation:
    """What a policy sees that stands where the clip begins; its noise is the clip's own."""
    images = dict(zip(cameras, clip.frames[:, 0], strict=True))
    return Observation(images, clip.proprio, clip.episode.instruction, clip.seed)


class VideoJudge:
    """A Ray actor: decodes, asks and measures beside the policy servers, so that neither they nor the sweep's own process are held up.

    Deterministic: asked again after it died, it gives the same answer.
    """

    def __init__(self, code: Files | None = None) -> None:
        """code: the driver's files; `measure` raises CodeChangedError where this process imported others. None: not compared."""
        self._code = code

    def measure(self, test: VideoTest, source: PolicySource) -> tuple[VideoScore, float]:
        """The score of the policy that the source leads to, asked as simulators ask it; and the CPU seconds that this process took for it."""
        began = time.process_time()
        asker: Any = source.connect()
        score = test.measure(asker.imagine)
        check_imported(self._code)
        return score, time.process_time() - began
