"""Action error on held-out episodes: the executed parts of predicted chunks against the recorded actions.

An episode is walked as a rollout would be: the policy observes the recording at frame 0, its chunk is
compared with the recorded actions for as many steps as it would execute, then it observes the frame after
those. So every recorded action is compared once, and the recording, not the policy, decides what is observed.

The unit is the standard deviation of each action dimension over all held-out episodes: 1 is as far off as the
demonstrator's own actions typically are from their mean. It is a property of the held-out episodes alone, so
it is the same for every arm; the statistics by which a policy normalises its actions are those of the arm's
own demos and differ between arms. A dimension that never changes in the held-out episodes has no unit and
does not count.

Shapes: L frames of an episode; A action dimensions; T steps of a chunk.
"""

import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode, EpisodeError
from orchestrator.data.manifest import EpisodeEntry
from policy.feature_stats import CONSTANT, Stats
from policy.interface import (
    PRESENT_ONLY,
    ActionChunk,
    LostSessionError,
    Observation,
    PolicyNeeds,
    derived_seed,
)

MEASURE = "action error on held-out episodes"
"""Name of the measure wherever it is shown."""
PLAYINGS = 6
"""Walks through an episode that may end because the policy has lost the session, as in a rollout."""
NAME_IN_SESSION = 100
"""Maximum characters of the episode's id in the name of a session."""


@dataclass(frozen=True)
class ActionScale:
    """Units of the action dimensions, from all held-out episodes."""

    mean: tuple[float, ...]
    """(A,) mean action."""
    std: tuple[float, ...]
    """(A,) standard deviation; 0 for a dimension that never changes, which is not counted."""

    @classmethod
    def of(cls, entries: Iterable[EpisodeEntry]) -> "ActionScale":
        """Return the scale of labelled episodes, from their statistics. Raises EpisodeError if no dimension
        changes.
        """
        stats = Stats.merge(entry.action_stats for entry in entries if entry.action_stats)
        spread = [math.sqrt(m2 / stats.count) for m2 in stats.m2]
        std = tuple(
            0.0 if high - low < 2 * CONSTANT else own
            for own, low, high in zip(spread, stats.low, stats.high, strict=True)
        )
        if not any(std):
            raise EpisodeError(
                "no action dimension changes in the held-out episodes, so that an action error has no unit;"
                " hold out more episodes"
            )
        return cls(tuple(stats.mean), std)

    def relative(self, errors_A: npt.NDArray[np.float64]) -> tuple[float | None, ...]:
        """Return mean absolute errors per dimension in standard deviations; None where there is no unit."""
        return tuple(
            float(error / std) if std else None for error, std in zip(errors_A, self.std, strict=True)
        )


@dataclass(frozen=True)
class ActionError:
    """Action error of a policy on one held-out episode; in standard deviations (`ActionScale`)."""

    episode: str
    """Episode id."""
    task: str
    steps: int
    """Number of recorded actions compared: the episode's length."""
    looks: int
    """Number of policy queries."""
    error: float
    """Mean absolute error over steps and dimensions."""
    dimensions: tuple[float | None, ...]
    """(A,) mean absolute error per dimension; None for a dimension without unit."""
    constant: float
    """Error of the mean action of the held-out episodes, without which the other numbers have no
    reference.
    """
    loss: float | None = None
    """Loss of the policy's actions on clips of the episode, in the units of its own training; None for a
    policy without one.
    """
    policy_s: float = 0.0
    """Seconds of waiting for the policy."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self) | {"dimensions": list(self.dimensions)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ActionError":
        """Invert `to_json`."""
        return cls(**data | {"dimensions": tuple(data["dimensions"])})


@dataclass(frozen=True)
class Walk:
    """Predicted actions of one walk through an episode."""

    actions: npt.NDArray[np.float64]
    """(L, A) executed parts of the chunks, one after another."""
    looks: int


class _Recording:
    """Observations of one walk through an episode, as a simulator's would be made."""

    def __init__(self, episode: Episode, entry: EpisodeEntry, needs: PolicyNeeds) -> None:
        self._episode, self._entry, self._needs = episode, entry, needs
        self._session = f"{entry.episode_id[:NAME_IN_SESSION]}-{uuid.uuid4().hex}"

    def at(self, frame: int) -> Observation:
        """Return what the policy observes at a frame, with the history that it needs. Its noise seed is a
        function of the episode's content and the frame.
        """
        seed = derived_seed(int(self._entry.sha256[:12], 16), frame)
        before = range(frame - self._needs.observation_steps + 1, frame)
        history = tuple(self._alone(max(0, earlier), seed) for earlier in before)
        return replace(self._alone(frame, seed), history=history)

    def _alone(self, frame: int, noise_seed: int) -> Observation:
        episode = self._episode
        assert episode.proprio is not None
        images = {camera: pictures[frame] for camera, pictures in episode.frames.items()}
        return Observation(
            images, episode.proprio[frame], episode.instruction, noise_seed, self._session, frame
        )


def walk(
    episode: Episode,
    entry: EpisodeEntry,
    act: Callable[[Observation], ActionChunk],
    needs: PolicyNeeds = PRESENT_ONLY,
) -> Walk:
    """Query a policy along an episode, in a session of its own; after a LostSessionError again from the
    start. Raises ValueError, with one sentence, for a chunk that is not finite or has another number of
    dimensions than the recorded actions, and the LostSessionError of the last of PLAYINGS walks.
    """
    for _ in range(PLAYINGS - 1):
        try:
            return _walk_once(episode, _Recording(episode, entry, needs), act)
        except LostSessionError:
            continue
    return _walk_once(episode, _Recording(episode, entry, needs), act)


def _walk_once(episode: Episode, recording: _Recording, act: Callable[[Observation], ActionChunk]) -> Walk:
    assert episode.action is not None
    width, parts, frame, looks = episode.action.shape[1], list[npt.NDArray[np.float64]](), 0, 0
    while frame < episode.length:
        chunk = act(recording.at(frame))
        executed = np.asarray(chunk.actions, np.float64)[: chunk.execute]
        if executed.shape[1] != width:
            raise ValueError(
                f"the policy's actions have {executed.shape[1]} dimensions, the recorded ones {width}"
            )
        if not np.isfinite(executed).all():
            raise ValueError(f"the policy's actions at frame {frame} are not finite")
        parts.append(executed)
        frame, looks = frame + len(executed), looks + 1
    return Walk(np.concatenate(parts)[: episode.length], looks)


def action_error(
    entry: EpisodeEntry,
    episode: Episode,
    walked: Walk,
    scale: ActionScale,
    loss: float | None,
    policy_s: float,
) -> ActionError:
    """Return the error of the actions of a walk, with the loss and the seconds that were measured with it."""
    assert episode.action is not None
    recorded = episode.action.astype(np.float64)
    off = scale.relative(np.abs(walked.actions - recorded).mean(0))
    constant = scale.relative(np.abs(np.asarray(scale.mean) - recorded).mean(0))
    return ActionError(
        episode=entry.episode_id,
        task=entry.task,
        steps=episode.length,
        looks=walked.looks,
        error=_mean(off),
        dimensions=off,
        constant=_mean(constant),
        loss=loss,
        policy_s=policy_s,
    )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known))


def mean_dimensions(errors: Iterable[ActionError]) -> tuple[float | None, ...]:
    """Return the mean over episodes of the error of each dimension; None for a dimension without unit."""
    columns = zip(*(error.dimensions for error in errors), strict=True)
    return tuple(
        None
        if any(value is None for value in column)
        else float(np.mean([v for v in column if v is not None]))
        for column in columns
    )


def mean_loss(errors: Iterable[ActionError]) -> float | None:
    """Return the mean loss over episodes; None if one has none."""
    losses = [error.loss for error in errors]
    known = [loss for loss in losses if loss is not None]
    return float(np.mean(known)) if known and len(known) == len(losses) else None
