"""Distance between a policy's imagined pictures and its cameras' later pictures, per observation of one
episode.

The distance is the root mean square error of a picture in grey levels (0 to 255), over all cameras: 255 /
10^(PSNR / 20). Its baseline, `still`, is the distance of the observation's own picture: the error of an
imagination in which nothing moves.

Shapes: H W pixels; F frames of one imagination.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.interface import Imagination
from sim_workers.rollout.episode import Outcome

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""


@dataclass
class _Look:
    """One observation, its imagination, and the distances measured since."""

    step: int
    imagined: Imagination
    seen: dict[str, Picture]
    distances: list[float] = field(default_factory=list)
    """Grey levels; one value per imagined frame whose moment came."""
    still: list[float] = field(default_factory=list)

    def frame_at(self, step: int) -> int | None:
        """Return the index of the imagined frame for the moment after `step` control steps; None if there is
        none.
        """
        frame, rest = divmod(step - self.step, self.imagined.stride)
        return frame - 1 if not rest and 1 <= frame <= _length(self.imagined) else None


class PredictionError:
    """Comparison of an episode's imagined frames with the camera pictures at the imagined moments.

    Every imagined frame is compared whose moment comes before the episode ends, even after a later
    observation with a new imagination.
    """

    def __init__(self) -> None:
        self._looks: list[_Look] = []
        self._open: list[_Look] = []

    def observed(self, step: int, imagined: Imagination, seen: dict[str, Picture]) -> None:
        """Record an observation after `step` control steps: the pictures `seen` and the imagination that
        follows them.
        """
        self._open = [
            look for look in self._open if step < look.step + look.imagined.stride * _length(look.imagined)
        ]
        self._looks.append(look := _Look(step, imagined, seen))
        self._open.append(look)

    def expects(self, step: int) -> bool:
        """Return whether an imagined frame shows the moment after `step` control steps."""
        return any(look.frame_at(step) is not None for look in self._open)

    def saw(self, step: int, seen: dict[str, Picture]) -> None:
        """Compare the camera pictures after `step` control steps with every frame imagined for that
        moment.
        """
        for look in self._open:
            if (frame := look.frame_at(step)) is not None:
                look.distances.append(
                    distance({camera: frames[frame] for camera, frames in look.imagined.frames.items()}, seen)
                )
                look.still.append(distance(look.seen, seen))

    def to_json(self, outcome: Outcome) -> dict[str, Any] | None:
        """Return {episode, task, result, steps, distances, still, mean_distance, mean_still} of the ended
        episode; None without imaginations.

        steps: control steps before each observation with at least one imagined moment that came. distances,
        still: means over these moments, per such observation, in grey levels. mean_*: means over these
        observations; null if the episode ended before any moment came.
        """
        if not self._looks:
            return None
        looks = [look for look in self._looks if look.distances]
        distances, still = (
            [float(np.mean(values)) for values in lists]
            for lists in ([o.distances for o in looks], [o.still for o in looks])
        )
        return {
            "episode": outcome.spec.episode_id,
            "task": outcome.spec.task,
            "result": outcome.result,
            "steps": [look.step for look in looks],
            "distances": distances,
            "still": still,
            "mean_distance": float(np.mean(distances)) if looks else None,
            "mean_still": float(np.mean(still)) if looks else None,
        }


def _length(imagined: Imagination) -> int:
    """Return F."""
    return len(next(iter(imagined.frames.values())))


def distance(one: dict[str, Picture], other: dict[str, Picture]) -> float:
    """Return the root mean square error over the pictures of all cameras, in grey levels."""
    return float(
        np.sqrt(np.mean([np.mean((one[camera].astype(np.float64) - other[camera]) ** 2) for camera in one]))
    )
