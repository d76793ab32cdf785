"""Collection of a policy's own rollouts into an episode store: scene after scene, until the store holds as
many as are asked for.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from orchestrator.code_fingerprint import run_files
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import commit, newest_manifest
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.parallel_writer import COMMIT_EVERY
from orchestrator.data.record_rollouts import (
    PolicyRollouts,
    RecordedOutcome,
    RecordingJob,
    RecordingWorker,
    Result,
)
from orchestrator.evaluation.policy_ref import PolicyRef
from orchestrator.evaluation.standalone import POLL_S, Simulators, rollout_cpus
from orchestrator.storage.base import Storage, check_conditional_writes
from sim_workers.checkout import Files
from sim_workers.rollout.episode import Outcome

if TYPE_CHECKING:
    from sim_workers.rollout.policy_clients import PolicySource
    from sim_workers.rollout.pool import RolloutPool

Wanted = Literal["any", "failed", "succeeded"]
KEEP: dict[Wanted, tuple[Result, ...]] = {
    "any": ("success", "failure"),
    "failed": ("failure",),
    "succeeded": ("success",),
}
"""Results of the rollouts that are recorded, by `--outcome`."""
KEY = "rollouts"
"""Key of the jobs in their pool."""
MOST_ERRORS = 5
"""Scenes in a row that end as an error, after the pool's retries, before no further one is played."""
WRITING_S = 120.0
"""Seconds that a worker may take to encode and write an episode, during which it sends no message."""


def recording_pool(simulators: Simulators, gl: str, code: Files) -> "RolloutPool":
    """Return a pool of these simulators on the connected Ray, which records. code: the driver's files."""
    from orchestrator.cluster.ray_runtime import node_selector
    from sim_workers.rollout.pool import PoolSettings, RolloutPool

    return RolloutPool(
        simulators.number,
        simulators.cpus,
        gl,
        nodes=node_selector("rollouts", CPU=simulators.number * simulators.cpus),
        label="collect",
        settings=PoolSettings(playing_timeout_s=WRITING_S),
        worker=RecordingWorker,
        code=code,
    )


class RolloutCollection:
    """Collection of the rollouts of one policy in one task.

    Scenes are taken up in their order, whichever ends first, so the episodes that are stored do not depend on
    the number of workers, except for scenes that ended as an error. A scene whose result is known, by its
    episode or by a note, is not played again unless its episode is to be stored and is not there.
    """

    def __init__(
        self,
        subject: PolicyRef,
        rollouts: PolicyRollouts,
        outcome: Wanted,
        episodes: int,
        most_scenes: int,
        storage: Storage,
        gl: str = "egl",
        cpus: Callable[[], float] = rollout_cpus,
        make_pool: Callable[[Simulators, str, Files], "RolloutPool"] = recording_pool,
    ) -> None:
        """Read what the store holds. Raises EpisodeError if it keeps other conventions than the policy's, or
        is damaged.

        episodes: number that the store shall hold. most_scenes: number of scenes, from the first of the
        block, that may be played for that, including those of earlier runs. cpus, make_pool: called by `play`
        for the CPUs that simulators may use and for the rollout pool.
        """
        self.subject, self.rollouts, self.episodes = subject, rollouts, episodes
        self._keep, self._most_scenes = KEEP[outcome], most_scenes
        self._storage, self._gl, self._cpus, self._make_pool = storage, gl, cpus, make_pool
        self.interrupted = False
        """Set to True to make `play` finish the running episodes and begin no other."""
        self.recorded: list[EpisodeEntry] = []
        """Episodes that `play` has added to the store."""
        self.errors: list[Outcome] = []
        """Outcomes of the scenes that ended as an error."""
        self._results: dict[int, Result] = rollouts.noted_results(storage)
        self._stored = self._read_store()
        self._results |= self._stored
        self._order: deque[int] = deque()  # scenes that were submitted and are not taken up yet
        self._ended: dict[int, Outcome] = {}  # outcomes of those of them that have ended
        self._entries: dict[int, EpisodeEntry] = {}  # taken up, not committed yet
        self._rejected: dict[int, Result] = {}  # likewise, without an episode
        self._errors_in_a_row = 0

    def _read_store(self) -> dict[int, Result]:
        """Return the results of the scenes whose episodes the store holds."""
        if (manifest := newest_manifest(self._storage)) is None:
            return {}
        if different := manifest.contract.mismatches(self.rollouts.contract):
            raise EpisodeError(
                f"{self._storage.uri}: the store was recorded with other conventions than the policy's"
                f" ({'; '.join(different)}); name another folder"
            )
        pairs = zip(manifest.episode_ids, manifest.column("success").to_pylist(), strict=True)
        return {
            scene: "success" if success else "failure"
            for episode_id, success in pairs
            if (scene := self.rollouts.scene_in(episode_id)) is not None
        }

    @property
    def held(self) -> int:
        """Number of episodes with a wanted result that are in the store or about to be committed."""
        stored = sum(result in self._keep for result in self._stored.values())
        return stored + len(self._entries)

    @property
    def complete(self) -> bool:
        """Whether the store holds the episodes."""
        return self.held >= self.episodes

    @property
    def failing(self) -> bool:
        """Whether MOST_ERRORS scenes in a row ended as an error, so that no further one is played."""
        return self._errors_in_a_row >= MOST_ERRORS

    @property
    def scenes(self) -> int:
        """Number of scenes with a result, including those of earlier runs."""
        return len(self._results)

    @property
    def results(self) -> Counter[Result]:
        """Number of scenes with each result, including those of earlier runs."""
        return Counter(self._results.values())

    @property
    def causes(self) -> list[str]:
        """Distinct messages of the errors, sorted."""
        return sorted({outcome.message for outcome in self.errors})

    def play(self, workers: int | None, on_progress: Callable[[int, int], None]) -> None:
        """Play scenes on the connected Ray until the store holds the episodes, no scene is left, or the
        collection is interrupted or fails; what was taken up is then in the store.

        workers: number of simulators; one per CPU by default. on_progress: receives the number of episodes
        held and the number of scenes with a result.
        """
        check_conditional_writes(self._storage)
        simulators = Simulators.fit(self._cpus(), workers)
        source = self.subject.reach(simulators.number)
        pool = self._make_pool(simulators, self._gl, run_files([self.rollouts.task]))
        unplayed = self._unplayed()
        try:
            while not (self.complete or self.failing):
                self._submit(pool, source, unplayed, simulators.number)
                if not pool.unfinished:
                    return
                for job, outcome, _ in pool.results(timeout_s=POLL_S):
                    self._ended[self.rollouts.scene_of(job.spec)] = outcome
                    self._take_up()
                    on_progress(self.held, self.scenes)
                    if self.complete or self.failing:
                        break
                    self._submit(pool, source, unplayed, simulators.number)
        finally:
            pool.close()
            self._commit()

    def _unplayed(self) -> Iterator[int]:
        """Yield the scenes to play, in their order."""
        for scene in range(self._most_scenes):
            if scene in self._stored:
                continue
            if (result := self._results.get(scene)) is None or result in self._keep:
                yield scene

    def _submit(
        self, pool: "RolloutPool", source: "PolicySource", unplayed: Iterator[int], workers: int
    ) -> None:
        """Keep the workers busy, or withdraw the waiting scenes if interrupted. Where every result is kept,
        no more scenes are played than are missing; else some may be played in vain at the end.
        """
        if self.interrupted:
            pool.withdraw(KEY)
            return
        most = 2 * workers  # one in progress and one waiting per worker
        if len(self._keep) > 1:
            most = min(most, self.episodes - self.held)
        while len(self._order) < most:
            if (scene := next(unplayed, None)) is None:
                return
            self._order.append(scene)
            pool.submit(
                RecordingJob(
                    self.rollouts.spec(scene),
                    self.rollouts.rules,
                    self.rollouts.contract,
                    source,
                    KEY,
                    checkpoint=self.subject.name,
                    rollouts=self.rollouts,
                    store=self._storage.uri,
                    keep=self._keep,
                )
            )

    def _take_up(self) -> None:
        """Take up the ended scenes that no earlier scene is missing before, and commit from time to time."""
        while self._order and self._order[0] in self._ended and not (self.complete or self.failing):
            scene = self._order.popleft()
            outcome = self._ended.pop(scene)
            if outcome.result == "error":
                self.errors.append(outcome)
                self._errors_in_a_row += 1
                continue
            self._errors_in_a_row = 0
            self._results[scene] = outcome.result
            entry = outcome.entry if isinstance(outcome, RecordedOutcome) else None
            if entry:
                self._entries[scene] = entry
            else:
                self._rejected[scene] = outcome.result
        if len(self._entries) + len(self._rejected) >= COMMIT_EVERY:
            self._commit()

    def _commit(self) -> None:
        """Add what was taken up to the store."""
        self.rollouts.note_results(self._storage, self._rejected)
        self._rejected = {}
        if not self._entries:
            return
        note = f"rollouts of {self.subject.name} in {self.rollouts.task}"
        commit(self._storage, self.rollouts.contract, [*self._entries.values()], note)
        self.recorded += self._entries.values()
        self._stored |= {scene: self._results[scene] for scene in self._entries}
        self._entries = {}
