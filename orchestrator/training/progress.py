"""How far a training run is: in optimiser steps, or in seconds of its budget (`train.match: gpu_seconds`)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.config.schema import Train


@dataclass
class Progress:
    """Position of a training run, and the checkpoints that are due.

    Positions, which name checkpoints, count optimiser steps, or whole seconds of a budget of time. Of that
    time counts what optimiser steps and their waits for data take, times the devices; a step during which the
    budget ends is finished.
    """

    train: Train
    step: int
    """Optimiser steps taken, those before a resumed checkpoint included."""
    saved: int
    """Position of the last checkpoint; 0 without one."""
    seconds: float = 0.0
    """Seconds of training, of all devices together; 0 without a budget of time."""
    devices: int = 1
    """Training processes, each of which has a GPU of its own where there are GPUs."""
    agree: Callable[[float], float] = float
    """Returns the same number of seconds in every training process, given that of this one."""
    clock: Callable[[], float] = time.perf_counter
    _since: float | None = field(default=None, init=False)
    _before: int = field(default=0, init=False)

    @property
    def position(self) -> int:
        """Optimiser steps, or whole seconds up to the budget."""
        return min(int(self.seconds), self.train.end) if self.train.timed else self.step

    @property
    def share(self) -> float | None:
        """Part of a budget of time that is spent, at most 1; None without one."""
        return min(1.0, self.seconds / self.train.end) if self.train.timed else None

    @property
    def ended(self) -> bool:
        """Whether training is at its end."""
        return self.position >= self.train.end

    def run_clock(self) -> None:
        """Count time from now on, if it is not counted already."""
        if self._since is None:
            self._since = self.clock()

    def stop_clock(self) -> None:
        """Count no time until `run_clock`."""
        self._since = None

    def stepped(self) -> None:
        """Count an optimiser step, and the time since `run_clock` or the step before."""
        self._before, self.step = self.position, self.step + 1
        if self.train.timed and self._since is not None:
            now = self.clock()
            self.seconds = self.agree(self.seconds + (now - self._since) * self.devices)
            self._since = now

    def passed(self, every: int) -> bool:
        """Return whether the last step led to or over a multiple of `every`."""
        return self.position // every > self._before // every

    def due(self, pause: bool) -> list[int]:
        """Return the positions of the checkpoints to save now, and count them as saved. pause: training ends
        here for the time being, so that one is saved here, unless the last one is of the same second.

        A step of a budget of time may lead over several positions; they get the same weights.
        """
        every, end = self.train.checkpoint_every, self.train.end
        found = [*range((self.saved // every + 1) * every, self.position + 1, every)]
        if self.ended and end not in (self.saved, *found):
            found.append(end)
        elif pause and not found and self.position > self.saved:
            found.append(self.position)
        self.saved = found[-1] if found else self.saved
        return found
