"""robosuite's observables, sampled when somebody asks rather than twenty times a second.

robosuite asks every observable at 500 Hz whether it is due. As robosuite makes them they all are after the last step of physics of each control
step, and nothing that they read changes until the next: so they can wait, and most of the time nobody asks.

Written against robosuite 1.5.2: `utils/observables.py`.
"""

from typing import Any

import numpy as np
from robosuite.utils import observables


class LateObservations:
    """The observations of one robosuite environment, from one reset to the next. Values and clock stay in robosuite's own objects.

    Who forces robosuite to an update has to ask for what is due before.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._seen = {name: observable for name, observable in env._observables.items() if observable._enabled}
        self._looked_back_at = _looked_back_at(self._seen, env._obs_cache)
        self._due_in = -1
        """The control step that the newest values, not sampled yet, belong to; if `env.step` has done another since, it has sampled them itself."""

    def postpone(self, substeps: int) -> bool:
        """Whether the observables can wait until the control step that begins now, of so many steps of physics, is over.

        If not, because somebody forced an update in between or made them otherwise, `env._update_observables()` has to be called after each.
        """
        if self._due_in == self._env.timestep:
            self._sample(self._looked_back_at)
        later = self._sampled_at_the_end(substeps)
        self._due_in = self._env.timestep + 1 if later else -1
        return later

    def sample(self) -> None:
        """Have the newest values, if nobody has asked before."""
        if self._due_in == self._env.timestep:
            self._sample(self._seen)
            self._due_in = -1

    def _sample(self, seen: dict[str, Any]) -> None:
        """What `Observable.update` does when a plain observable is due."""
        cache = self._env._obs_cache
        for name, observable in seen.items():
            value = np.array(observable._sensor(cache))
            observable._current_observed_value = value[0] if value.shape == (1,) else value
            cache[name] = np.array(observable._current_observed_value)

    def _sampled_at_the_end(self, substeps: int) -> bool:
        """Whether all observables are due after the last step of physics; if so, their clock is set to what it will be then."""
        seen = self._seen.values()
        clocks = {(one._time_since_last_sample, one._sampled, one._sampling_timestep) for one in seen}
        if len(clocks) != 1 or not all(map(_plain, seen)):
            return False
        ((clock, sampled, period),) = clocks
        timestep, sampled_at = self._env.model_timestep, []
        for substep in range(substeps):  # as Observable.update counts: sums of many 0.002 are not quite multiples of it
            clock += timestep
            if not sampled and period >= clock:
                sampled_at.append(substep)
                sampled = True
            if clock >= period and sampled:
                clock, sampled = clock % period, False
        if sampled_at != [substeps - 1]:
            return False
        for observable in seen:
            observable._time_since_last_sample, observable._sampled = clock, sampled
        return True


class _Watched(dict[str, Any]):
    """An observation cache that notes what is read in it before it is written: the sample before."""

    def __init__(self, cache: dict[str, Any]) -> None:
        super().__init__(cache)
        self.old, self.new = set[str](), set[str]()

    def __contains__(self, key: object) -> bool:
        self.old |= {str(key)} - self.new
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.old |= {key} - self.new
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.new.add(key)
        super().__setitem__(key, value)


def _looked_back_at(seen: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    """The observables of which the next sample uses this one's values: they have to be sampled even if nobody asks.

    A sensor may read what is sampled only after it: PickPlace's way from a thing to the hand goes by where the thing was.
    """
    watched = _Watched(cache)
    for _ in range(2):  # from an empty cache, a sensor might not read on
        watched.new.clear()
        for name, observable in seen.items():
            watched[name] = np.array(observable._sensor(watched))
    back, theirs = {name: seen[name] for name in seen if name in watched.old}, _Watched(watched)
    for observable in back.values():
        observable._sensor(theirs)
    return back if len(back) == len(watched.old) and not theirs.old else seen


def _plain(observable: Any) -> bool:
    """Whether an observable shows what its sensor says, at once."""
    made = (observable._corrupter, observable._filter, observable._delayer)
    return made == (observables.NO_CORRUPTION, observables.NO_FILTER, observables.NO_DELAY) and observable._current_delay == 0.0
