"""robosuite's observables, sampled on demand instead of twenty times a second.

robosuite checks every observable at 500 Hz for whether it is due. By default all are due after the last
physics step of each control step, and nothing that they read changes until the next one. So sampling can wait
for a read, and most samples are never read.

Written against robosuite 1.5.2: `utils/observables.py`.
"""

from typing import Any

import numpy as np
from robosuite.utils import observables


class LateObservations:
    """Observations of one robosuite environment, from one reset to the next. Values and clock stay in
    robosuite's own objects.

    A caller that forces an update of robosuite must call sample() first.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._seen = {
            name: observable for name, observable in env._observables.items() if observable._enabled
        }
        self._looked_back_at = _looked_back_at(self._seen, env._obs_cache)
        self._due_in = -1
        """Control step whose values are not sampled yet; -1 if there is none. If `env.step` has made another
        step since, it has sampled them.
        """

    def postpone(self, substeps: int) -> bool:
        """Return whether sampling can wait for the end of the control step that begins now, of `substeps`
        physics steps.

        If not, because an update was forced in between or an observable is not a default one, the caller must
        call `env._update_observables()` after each physics step.
        """
        if self._due_in == self._env.timestep:
            self._sample(self._looked_back_at)
        later = self._sampled_at_the_end(substeps)
        self._due_in = self._env.timestep + 1 if later else -1
        return later

    def sample(self) -> None:
        """Sample the newest values unless that has been done."""
        if self._due_in == self._env.timestep:
            self._sample(self._seen)
            self._due_in = -1

    def _sample(self, seen: dict[str, Any]) -> None:
        """Do what `Observable.update` does when a plain observable is due."""
        cache = self._env._obs_cache
        for name, observable in seen.items():
            value = np.array(observable._sensor(cache))
            observable._current_observed_value = value[0] if value.shape == (1,) else value
            cache[name] = np.array(observable._current_observed_value)

    def _sampled_at_the_end(self, substeps: int) -> bool:
        """Return whether all observables are due after the last physics step; if so, set their clock to its
        value then.
        """
        seen = self._seen.values()
        clocks = {(one._time_since_last_sample, one._sampled, one._sampling_timestep) for one in seen}
        if len(clocks) != 1 or not all(map(_plain, seen)):
            return False
        ((clock, sampled, period),) = clocks
        timestep, sampled_at = self._env.model_timestep, []
        # as Observable.update counts: sums of many 0.002 are not quite multiples of it
        for substep in range(substeps):
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
    """Observation cache that records the keys read before they are written, which are values of the previous
    sample.
    """

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
    """Return the observables whose values the next sample uses: they must be sampled even without a read.

    A sensor may read a value that is sampled only after it: PickPlace's vector from an object to the hand
    uses the object's previous pose.
    """
    watched = _Watched(cache)
    for _ in range(2):  # with an empty cache, a sensor might stop reading early
        watched.new.clear()
        for name, observable in seen.items():
            watched[name] = np.array(observable._sensor(watched))
    back, theirs = {name: seen[name] for name in seen if name in watched.old}, _Watched(watched)
    for observable in back.values():
        observable._sensor(theirs)
    return back if len(back) == len(watched.old) and not theirs.old else seen


def _plain(observable: Any) -> bool:
    """Return whether an observable is its sensor's value, without corruption, filter or delay."""
    made = (observable._corrupter, observable._filter, observable._delayer)
    return (
        made == (observables.NO_CORRUPTION, observables.NO_FILTER, observables.NO_DELAY)
        and observable._current_delay == 0.0
    )
