"""Recording of a policy's own rollouts as episodes without actions, in the processes that play them.

The code that scores a policy plays it, so an episode that is recorded goes as one that is scored. Only the
rendering differs: a picture of every control step is kept, as of demonstrations, and not only those that the
policy observes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

import numpy as np

from orchestrator.data.drawn_by import note_driver
from orchestrator.data.episode_format import Episode, EpisodeError
from orchestrator.data.episode_store import put_episode
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import Storage, open_storage
from orchestrator.storage.notes import read_json_objects
from policy.interface import Contract, Observation, PolicyNeeds
from sim_workers.envs.registry import instruction_of
from sim_workers.envs.render_check import driver_of
from sim_workers.rollout.episode import Env, Outcome
from sim_workers.rollout.policy_clients import PolicyClient
from sim_workers.rollout.rollout_block import ROLLOUT_BLOCK
from sim_workers.rollout.suite import FIRST_EVALUATION_SEED, EpisodeRules, EpisodeSpec, task_in_ids
from sim_workers.rollout.watched_env import watched
from sim_workers.rollout.worker import Played, RolloutJob, RolloutWorker, Said

SCENES = FIRST_EVALUATION_SEED
"""Number of scenes of ROLLOUT_BLOCK."""

Result = Literal["success", "failure"]


@dataclass(frozen=True)
class PolicyRollouts:
    """Rollouts of one policy in one task, one per scene of ROLLOUT_BLOCK: what decides how each of them goes.

    Scenes are counted from 0.
    """

    policy: str
    """Fingerprint of the policy."""
    sampler: str
    """Settings of a checkpoint's sampler as JSON; empty for every other policy."""
    task: str
    rules: EpisodeRules
    contract: Contract
    """The policy's, and that of the store."""

    @property
    def key(self) -> str:
        """Hash of policy, sampler, task and rules, 12 hexadecimal digits."""
        facts = [self.policy, self.sampler, self.task, asdict(self.rules)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def spec(self, scene: int) -> EpisodeSpec:
        """Return the entry of a suite that plays the scene."""
        seed = FIRST_EVALUATION_SEED * (1 + ROLLOUT_BLOCK) + scene
        return EpisodeSpec(self.task, seed, seed)

    def scene_of(self, spec: EpisodeSpec) -> int:
        """Invert `spec`."""
        return spec.scene_seed - self.spec(0).scene_seed

    def episode_id(self, scene: int) -> str:
        """Return the id of the scene's episode in a store."""
        return f"{self._prefix}{scene:06d}"

    def scene_in(self, episode_id: str) -> int | None:
        """Invert `episode_id`; None for an id of any other episode."""
        return int(episode_id[len(self._prefix) :]) if episode_id.startswith(self._prefix) else None

    @property
    def _prefix(self) -> str:
        return f"{task_in_ids(self.task)}-policy-{self.key}-"

    def source(self, scene: int) -> str:
        """Return the origin of the scene's episode, which filters of stores search."""
        return (
            f"policy {self.policy}, horizon {self.rules.horizon}, scene block {ROLLOUT_BLOCK},"
            f" seed {self.spec(scene).scene_seed}"
        )

    # -- scenes whose episodes are not in the store ----------------------------------------------------------

    @property
    def _notes(self) -> str:
        return f"rollouts/{self.key}/"

    def note_results(self, storage: Storage, results: Mapping[int, Result]) -> None:
        """Write to the store how rollouts ended whose episodes it does not hold, by scene."""
        if results:
            data = json.dumps({str(scene): result for scene, result in sorted(results.items())}).encode()
            storage.put_if_absent(f"{self._notes}{hashlib.sha256(data).hexdigest()[:16]}.json", data)

    def noted_results(self, storage: Storage) -> dict[int, Result]:
        """Return what `note_results` has written, by scene."""
        results: dict[int, Result] = {}
        for told in read_json_objects(storage, self._notes).values():
            results |= {int(scene): result for scene, result in told.items()}
        return results


@dataclass(frozen=True, kw_only=True)
class RecordingJob(RolloutJob):
    """Rollout to play and, if it ends with one of the results `keep`, to write to a store."""

    rollouts: PolicyRollouts
    store: str
    """URI of the store."""
    keep: tuple[Result, ...] = get_args(Result)


@dataclass(frozen=True)
class RecordedOutcome(Outcome):
    """Outcome with the episode that was written."""

    entry: EpisodeEntry | None = None
    """None if the result is none of those to keep."""

    @classmethod
    def of(cls, outcome: Outcome, entry: EpisodeEntry | None) -> "RecordedOutcome":
        """Return the outcome with its episode."""
        return cls(**{field.name: getattr(outcome, field.name) for field in fields(Outcome)}, entry=entry)


class FrameRecorder:
    """Watch of an episode that keeps the observation of every state, rendered by the policy's cameras."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self._seen: list[Observation] = []

    def begin(self) -> None:
        """Keep the first state alone."""
        self._seen = []
        self.look()

    def look(self) -> None:
        """Keep the current state."""
        self._seen.append(self.env.observe(0))

    def episode(self, rollouts: PolicyRollouts, scene: int, success: bool) -> Episode:
        """Return the episode so far, without actions: as of demonstrations, a frame is the state before the
        control step of its number, and the state after the last step is left out.

        Raises EpisodeError for an episode without control steps.
        """
        seen = self._seen[:-1]
        if not seen:
            raise EpisodeError(
                f"episode {rollouts.episode_id(scene)}: it was over before the first control step, so that"
                " there is nothing to record"
            )
        return Episode(
            episode_id=rollouts.episode_id(scene),
            task=rollouts.task,
            instruction=instruction_of(rollouts.task),
            frames={camera: np.stack([one.images[camera] for one in seen]) for camera in seen[0].images},
            proprio=np.stack([one.proprio for one in seen]).astype(np.float32),
            action=None,
            success=success,
            source=rollouts.source(scene),
        )


class RecordingWorker(RolloutWorker):
    """Rollout worker whose outcomes are `RecordedOutcome`s; its jobs are `RecordingJob`s."""

    _noted = False

    def _playing(self, job: RolloutJob, asker: PolicyClient, needs: PolicyNeeds) -> Iterator[Said]:
        assert isinstance(job, RecordingJob)
        assert self._env is not None
        frames = FrameRecorder(self._env)
        with watched(self._env, frames):
            for said in super()._playing(job, asker, needs):
                if isinstance(said, Played):
                    said = replace(said, outcome=self._record(job, said.outcome, frames))
                yield said

    def _record(self, job: RecordingJob, outcome: Outcome, frames: FrameRecorder) -> RecordedOutcome:
        """Write the episode if its result is to be kept. A recording that cannot be used is an error."""
        if outcome.result not in job.keep:
            return RecordedOutcome.of(outcome, None)
        rollouts, storage = job.rollouts, open_storage(job.store)
        try:
            scene = rollouts.scene_of(job.spec)
            episode = frames.episode(rollouts, scene, outcome.result == "success")
            entry = put_episode(storage, episode, rollouts.contract.control_hz)
        except EpisodeError as error:
            return RecordedOutcome.of(replace(outcome, result="error", message=str(error)), None)
        if not self._noted:
            note_driver(storage, driver_of(frames.env), "demoscale collect --policy")
            self._noted = True
        return RecordedOutcome.of(outcome, entry)
