"""Explanation of why an arm would be trained or scored again: the parts of its keys, stored and current."""

from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoints.record import CheckpointRecord
from orchestrator.config.arms import Arm
from orchestrator.fingerprints import Difference, Key, Kind, compare
from orchestrator.sweep.state import SweepState, no_such_arm


@dataclass(frozen=True)
class Compared:
    """Comparison of one key of an arm: the key of the stored results, and the key that the next run would
    use.
    """

    kind: Kind
    stored: str
    """Name of the stored results: the arm's id, or the protocol; empty if there are none."""
    now: str
    """Name that the next run would compute."""
    parts: tuple[Difference, ...] | None
    """Every part of the key; None if nothing is stored, or the parts of the stored key are unknown."""

    @property
    def same(self) -> bool:
        """Whether the stored fingerprint equals today's."""
        return self.stored == self.now

    def lines(self) -> list[str]:
        """Return the comparison as lines of text."""
        if not self.stored:
            return [f"{self.kind}: nothing is stored"]
        if self.parts is None:
            return [
                f"{self.kind}: {self.stored} is stored; an earlier version wrote it, and nothing is known of"
                " its parts"
            ]
        width = max(len(part.part) for part in self.parts)
        return [
            f"{self.kind}: stored {self.stored}, now {self.now}",
            *(f"  {part.part:<{width}}  {part}" for part in self.parts),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return both fingerprints, whether they are equal, and the parts that were compared; JSON-safe."""
        parts = None if self.parts is None else [part.to_json() for part in self.parts]
        return {"stored": self.stored, "now": self.now, "same": self.same, "parts": parts}


@dataclass(frozen=True)
class Explanation:
    """Work that the next run of a sweep would do for one arm, and its reasons."""

    arm: str
    training: Compared
    score: Compared
    first_step: int
    """Optimiser step from which the arm would be trained, or seconds of its budget that are spent."""
    steps: int
    """Optimiser step at which training ends, or its budget in seconds; nothing is trained if it equals
    `first_step`.
    """
    episodes: int
    """Upper bound of the episodes that would be played."""
    unit: str = "steps"
    """Unit of `first_step` and `steps`, `Train.unit`."""

    @property
    def consequence(self) -> str:
        """Work of the next run, as part of a sentence."""
        played = "played" if self.score.kind == "score" else "measured"
        play = f"{self.episodes} episodes are {played}" if self.episodes else f"no episode is {played}"
        again = " again" if self.episodes and self.score.stored and not self.score.same else ""
        if self.first_step == self.steps:
            return (
                f"nothing is trained, {play}{again}"
                if self.episodes
                else "nothing: the arm is trained and scored"
            )
        if self.training.stored and not self.training.same:
            return f"the arm is trained again from {self._span(0)}, {play}{again or ' again'}"
        return f"the arm is trained from {self._span(self.first_step)}, {play}{again}"

    def _span(self, first: int) -> str:
        if self.unit == "steps":
            return f"step {first} to {self.steps}"
        return f"{first} to {self.steps} {self.unit}"

    def lines(self) -> list[str]:
        """Return the explanation as lines of text."""
        return [self.arm, *self.training.lines(), *self.score.lines(), f"the next run: {self.consequence}"]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe, for `demoscale explain --json`."""
        return {
            "arm": self.arm,
            "training": self.training.to_json(),
            "score": self.score.to_json(),
            "first_step": self.first_step,
            "steps": self.steps,
            "episodes": self.episodes,
            "consequence": self.consequence,
        }


def explain(state: SweepState, name: str) -> Explanation:
    """Compare an arm, given by name or id, with its stored results. Raises SweepError if it is no arm of the
    sweep.
    """
    arms = state.arms()
    arm = next((arm for arm_id, arm in arms.items() if name in (arm_id, arm.name)), None)
    if arm is None:
        raise no_such_arm(state.sweep.name, name, arms.values())
    training = _training(state, arm)
    score = _score(state, arm, training.stored)
    done = state.checkpoints(training.now)
    first_step = max(done, default=0)
    return Explanation(
        arm.name,
        training,
        score,
        first_step,
        state.sweep.train_of(arm).end,
        _episodes(state, arm, done),
        state.sweep.train.unit,
    )


def _training(state: SweepState, arm: Arm) -> Compared:
    key = state.key_of(arm)
    now, prefix = arm.arm_id(key.fingerprint), f"checkpoints/{arm.name}_"
    stored = {found.split("/")[1] for found in state.storage.list(prefix)}
    if now in stored:
        return Compared("training", now, now, tuple(compare(key, key)))
    for fingerprint, kept in Key.all_kept(state.storage, "training").items():
        if (arm_id := arm.arm_id(fingerprint)) in stored:
            return Compared("training", arm_id, now, tuple(compare(kept, key)))
    return Compared("training", max(stored, default=""), now, None)


def _score(state: SweepState, arm: Arm, arm_id: str) -> Compared:
    """Compare the nominal suite's protocol with that of the arm's last stored checkpoint that has
    outcomes.
    """
    key = state.protocol_key("nominal", state.sweep.line(arm))
    now = key.fingerprint
    for _, checkpoint in sorted(state.checkpoints(arm_id).items(), reverse=True) if arm_id else ():
        folder = f"{'action_errors' if state.held_out else 'outcomes'}/{checkpoint.fingerprint}/"
        stored = {
            name.removeprefix(folder).partition("/")[0].removesuffix(".parquet")
            for name in state.storage.list(folder)
        }
        if now in stored:
            return Compared(key.kind, now, now, tuple(compare(key, key)))
        for fingerprint, kept in Key.all_kept(state.storage, key.kind).items():
            if fingerprint in stored and kept.parts.get("suite", {}).get("shift", "nominal") == "nominal":
                return Compared(key.kind, fingerprint, now, tuple(compare(kept, key)))
        if stored:
            return Compared(key.kind, max(stored), now, None)
    return Compared(key.kind, "", now, None)


def _episodes(state: SweepState, arm: Arm, done: dict[int, CheckpointRecord]) -> int:
    """Return the number of episodes that the arm's checkpoints lack, including checkpoints not
    trained yet.
    """
    left, steps = 0, state.sweep.scored_steps(arm)
    for step in steps:
        if state.held_out:
            measured = state.action_error(arm, done[step].fingerprint).episodes if step in done else 0
            left += len(state.held_out) - measured
            continue
        reported = ("nominal", *state.sweep.suite.shifts) if step == steps[-1] else ()
        for shift in dict.fromkeys((state.sweep.suite.decided_on, *reported)):
            left += state.sweep.to_suite(shift).episodes * len(state.sweep.suite.tasks)
            if step in done:
                score, _ = state.score(arm, done[step].fingerprint, shift)
                left -= score.listed if score.complete else score.episodes
    return left
