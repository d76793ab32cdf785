"""Choice of the scene that a worker plays next when none of its own scene's episodes is waiting.

Another scene needs another simulator, which takes seconds to build. So the worker takes a scene that no
worker has, and helps with a scene of busy workers only if its first episode would end before they were
through with the queue. Outcomes do not depend on the choice.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

NEWEST = 0.2
"""Weight of the newest value in a moving mean: episodes get shorter as policies get better."""


@dataclass(frozen=True)
class SceneLoad:
    """Queue of one scene, as an idle worker with another scene, or none yet, finds it."""

    waiting: int
    """Number of episodes that no worker plays yet; at least 1."""
    workers: int
    """Number of workers that play the scene now and will play on."""
    build_s: float | None = None
    """Seconds until the idle worker has a simulator of the scene. None if unknown."""
    episode_s: float | None = None
    """Seconds per episode. None if unknown."""

    @property
    def gain_s(self) -> float:
        """Seconds by which the busy workers' last episode ends after the first one of the idle worker, which
        has to build first. Infinite without busy workers or if a duration is unknown.
        """
        if not self.workers or self.build_s is None or self.episode_s is None:
            return float("inf")
        # each is halfway through its episode on average
        theirs_s = (self.waiting / self.workers + 0.5) * self.episode_s
        return theirs_s - (self.build_s + self.episode_s)


def choose_scene(loads: Mapping[K, SceneLoad]) -> K | None:
    """Return the scene whose next episode an idle worker plays, given those with waiting episodes in the
    order of their turns. None if it should wait, because the busy workers are through with theirs sooner.
    """
    for scene, load in loads.items():
        if not load.workers:
            return scene
    return max(
        (scene for scene, load in loads.items() if load.gain_s > 0),
        key=lambda scene: (loads[scene].gain_s, loads[scene].waiting / loads[scene].workers),
        default=None,
    )


@dataclass
class _MovingMean:
    value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else (1 - NEWEST) * self.value + NEWEST * value


@dataclass
class Durations:
    """Measured durations of a run, as moving means."""

    _builds: dict[bool, _MovingMean] = field(default_factory=dict)
    _episodes: dict[Hashable, _MovingMean] = field(default_factory=dict)
    _any_episode: _MovingMean = field(default_factory=_MovingMean)

    def built(self, seconds: float, fresh: bool) -> None:
        """Record that building a simulator took `seconds`. fresh: in a process that has had none, so that
        imports are part of it.
        """
        self._builds.setdefault(fresh, _MovingMean()).add(seconds)

    def played(self, scene: Hashable, seconds: float) -> None:
        """Record that an episode of the scene took `seconds`."""
        self._episodes.setdefault(scene, _MovingMean()).add(seconds)
        self._any_episode.add(seconds)

    def build_s(self, fresh: bool) -> float | None:
        """Return the mean seconds of a build; of the other kind of process if this one built none, None if
        none did.
        """
        mean = self._builds.get(fresh) or self._builds.get(not fresh)
        return mean.value if mean else None

    def episode_s(self, scene: Hashable) -> float | None:
        """Return the mean seconds of an episode; over all scenes if this one has none, None without any."""
        return self._episodes.get(scene, self._any_episode).value
