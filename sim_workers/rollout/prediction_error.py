"""How far what a policy imagined is from what its cameras then saw, look by look of one episode.

The distance is the root mean square error of a picture in grey levels (0 to 255), over all cameras: 255 / 10^(PSNR / 20). Beside it stands
the distance of the picture that the policy had before it when it looked, repeated: who imagined that nothing moves would have got that.

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
    step: int
    imagined: Imagination
    seen: dict[str, Picture]
    distances: list[float] = field(default_factory=list)
    """Of the imagined frames whose moments came."""
    still: list[float] = field(default_factory=list)

    def frame_at(self, step: int) -> int | None:
        """Which of the imagined frames shows the moment after so many control steps."""
        frame, rest = divmod(step - self.step, self.imagined.stride)
        return frame - 1 if not rest and 1 <= frame <= _length(self.imagined) else None


class Foresight:
    """Told of every look and of what the cameras see at the moments that were imagined.

    Every imagined frame is compared whose moment comes before the episode ends, also where the policy has looked again since, and may have
    changed its mind.
    """

    def __init__(self) -> None:
        self._looks: list[_Look] = []
        self._open: list[_Look] = []

    def looked(self, step: int, imagined: Imagination, seen: dict[str, Picture]) -> None:
        """After so many control steps the policy saw this, and expects that."""
        self._open = [look for look in self._open if step < look.step + look.imagined.stride * _length(look.imagined)]
        self._looks.append(look := _Look(step, imagined, seen))
        self._open.append(look)

    def expects(self, step: int) -> bool:
        """Whether somebody imagined the moment after so many control steps."""
        return any(look.frame_at(step) is not None for look in self._open)

    def saw(self, step: int, seen: dict[str, Picture]) -> None:
        """What the cameras see after so many control steps."""
        for look in self._open:
            if (frame := look.frame_at(step)) is not None:
                look.distances.append(distance({camera: frames[frame] for camera, frames in look.imagined.frames.items()}, seen))
                look.still.append(distance(look.seen, seen))

    def to_json(self, outcome: Outcome) -> dict[str, Any] | None:
        """{episode, task, result, steps, distances, still, mean_distance, mean_still}, of an episode that ended so; None if nothing was imagined.

        steps: of every look at least one of whose moments came, the control steps before it. distances, still: likewise, means over those
        moments. mean_*: over these looks; null if the episode was over before any moment came.
        """
        if not self._looks:
            return None
        looks = [look for look in self._looks if look.distances]
        distances, still = ([float(np.mean(values)) for values in lists] for lists in ([o.distances for o in looks], [o.still for o in looks]))
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
    """F."""
    return len(next(iter(imagined.frames.values())))


def distance(one: dict[str, Picture], other: dict[str, Picture]) -> float:
    """Root mean square over the pictures of all cameras, in grey levels."""
    return float(np.sqrt(np.mean([np.mean((one[camera].astype(np.float64) - other[camera]) ** 2) for camera in one])))
