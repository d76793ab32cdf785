"""References of a sweep's suite: random actions, the scripted expert and replayed demonstrations, each scored
once per suite by the sweep's own pool.

Their scores have ledgers of their own and take part in no comparison, search or stop decision.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.code_fingerprint import Code, code_fingerprint
from orchestrator.data.episode_format import decode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.subset import permutation
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.scores import EvalJob, Score, protocol_key, score_so_far
from orchestrator.fingerprints import Key
from orchestrator.provenance import digest
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.tracking.references import LABELS, ReferenceScore
from policy.feature_stats import Stats
from policy.interface import Contract
from sim_workers.envs.tasks import TASKS
from sim_workers.rollout.reference_policies import DemoActions, ReferenceName, ReferencePolicy
from sim_workers.rollout.suite import Suite

CODE = Code(
    ("sim_workers/rollout/reference_policies.py",),
    ("sim_workers/demos/", "sim_workers/rollout/reference_policies.py"),
)
"""Code that shapes the actions of references."""
MOST_REPLAYED = 20
"""Demonstrations per task that are replayed; every scene gets one of them."""


@dataclass(frozen=True)
class Reference:
    """One reference of a sweep, as it is scored."""

    name: ReferenceName
    suite: Suite
    contract: Contract
    """Conventions of its environments: the sweep's, without cameras where the simulator can do without."""
    policy: ReferencePolicy
    """Without the actions of demonstrations to replay, which `job` reads."""
    demos: tuple[EpisodeEntry, ...]
    """Demonstrations to replay."""
    checkpoint: CheckpointRef
    """Identity of its scores."""
    key: Key
    """Protocol of its scores."""

    def score(self, state: SweepState) -> Score:
        """Return its score from the ledger so far."""
        ledger = Ledger(state.storage, self.checkpoint.fingerprint, self.key.fingerprint)
        return score_so_far(ledger, self.suite, None)[0]

    def job(self, state: SweepState) -> EvalJob:
        """Return the job that scores it; reads the demonstrations to replay."""
        storage = open_storage(state.episodes)
        actions = []
        for entry in self.demos:
            action = decode(fetch(storage, entry), (), with_actions=True).action
            assert action is not None
            actions.append(DemoActions.of(entry.episode_id, entry.task, action))
        return EvalJob(
            arm_id=f"reference-{self.name}",
            step=0,
            checkpoint=self.checkpoint,
            suite=self.suite,
            protocol=self.key.fingerprint,
            source=replace(self.policy, demos=tuple(actions)),
            arm=LABELS[self.name],
            contract=self.contract,
        )


def references_of(state: SweepState) -> Iterator[Reference]:
    """Yield the references that the sweep file asks for."""
    suite, contract = state.sweep.to_suite(), state.contract
    if all(task in TASKS for task in suite.tasks):
        contract = replace(contract, cameras=(), poses=())
    for name in state.sweep.suite.references:
        entries = [entry for task in suite.tasks for entry in _demos(state, task)]
        stats = Stats.merge(entry.action_stats for entry in entries if entry.action_stats)
        policy = ReferencePolicy(name, stats.low, stats.high)
        demos = tuple(entries) if name == "replay" else ()
        ids = [entry.sha256 for entry in demos]
        identity = digest([policy.to_json(), ids, code_fingerprint(CODE)])
        key = protocol_key(suite, contract, None, state.sweep.suite.gl, packages=state.packages)
        checkpoint = CheckpointRef(f"references/{name}", f"reference-{name}-{identity}")
        yield Reference(name, suite, contract, policy, demos, checkpoint, key)


def reference_scores(state: SweepState) -> tuple[ReferenceScore, ...]:
    """Return the complete scores of the sweep's references."""
    scores = [(one.name, one.score(state)) for one in references_of(state)]
    return tuple(
        ReferenceScore(name, score.successes, score.episodes, score.errors)
        for name, score in scores
        if score.complete
    )


def _demos(state: SweepState, task: str) -> list[EpisodeEntry]:
    """Return at most MOST_REPLAYED demonstrations of a task, in a seeded order, successful ones only."""
    manifest = state.manifest
    aside = {*state.quarantined, *state.held_out}
    ids = [manifest.episode_ids[place] for place in permutation(manifest, task, 0).tolist()]
    entries = manifest.select([episode for episode in ids if episode not in aside])
    chosen = {entry.episode_id: entry for entry in entries if entry.labelled and entry.success is not False}
    return [chosen[episode] for episode in ids if episode in chosen][:MOST_REPLAYED]
