"""A checkpoint's score: successes out of the suite's episodes, and the protocol that two comparable scores
share.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.code_fingerprint import (
    SCORING_CODE,
    SIMULATING_CODE,
    code_fingerprint,
    code_hashes,
    plugin_code,
)
from orchestrator.evaluation.outcome_ledger import Ledger, RenderReferences
from orchestrator.evaluation.sequential_rule import StoppingRule, Verdict, blocks, prefix
from orchestrator.fingerprints import Key
from orchestrator.provenance import (
    ACTING_PACKAGES,
    SIMULATING_PACKAGES,
    digest,
    package_versions,
)
from orchestrator.stats.fixed_sample import Interval, blaker
from orchestrator.stats.sequential import anytime_interval
from orchestrator.storage.base import Storage
from policy.config import SamplerConfig
from policy.errors import DemoscaleError
from policy.interface import Contract
from sim_workers.envs.registry import is_plugin, unfit
from sim_workers.envs.render import MIXED
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.suite import Suite


class ProtocolError(DemoscaleError):
    """Error of one sentence: why the policy cannot be scored here."""


@dataclass(frozen=True)
class Score:
    """Successes out of the suite's episodes. Complete when every listed episode ended in success or failure,
    or the rule has a verdict.
    """

    successes: int
    failures: int
    errors: int
    listed: int
    """Number of episodes in the suite."""
    once: int
    """Number of episodes in which the task was done at some step."""
    at_end: int
    """Number of episodes in which the task was done in the last step played."""
    causes: tuple[tuple[str, str], ...] = ()
    """Episode id and message of every error."""
    rule: StoppingRule | None = None
    """Rule that checked the outcomes while episodes were played; None for a fixed sample."""
    verdict: Verdict | None = None
    """Verdict of the rule; None until it has one."""

    @classmethod
    def of(
        cls,
        outcomes: Iterable[Outcome],
        listed: int,
        rule: StoppingRule | None = None,
        verdict: Verdict | None = None,
    ) -> "Score":
        """Count outcomes; with a verdict, those that it rests on."""
        outcomes = list(outcomes)
        errors = [outcome for outcome in outcomes if outcome.result == "error"]
        return cls(
            successes=sum(outcome.result == "success" for outcome in outcomes),
            failures=sum(outcome.result == "failure" for outcome in outcomes),
            errors=len(errors),
            listed=listed,
            once=sum(outcome.success_once for outcome in outcomes),
            at_end=sum(outcome.success_at_end for outcome in outcomes),
            causes=tuple((outcome.spec.episode_id, outcome.message) for outcome in errors),
            rule=rule,
            verdict=verdict,
        )

    @property
    def episodes(self) -> int:
        """Number of episodes that ended in success or failure: the denominator."""
        return self.successes + self.failures

    @property
    def complete(self) -> bool:
        """Whether the rule has a verdict or, without a rule, every listed episode ended in success or
        failure.
        """
        return self.verdict is not None if self.rule else self.episodes == self.listed

    @property
    def merit(self) -> float:
        """Number by which a search ranks checkpoints, higher is better: the interval's lower bound."""
        return self.interval.low

    @property
    def decided(self) -> str:
        """Verdict in words, such as `above 0.8 after 40 of 200 listed`; empty if nothing was decided."""
        return (
            f"{self.verdict.says} after {self.episodes} of {self.listed} listed"
            if self.verdict and self.verdict.says
            else ""
        )

    @property
    def success_rate(self) -> float:
        """Successes over episodes; nan without episodes."""
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> Interval:
        """95 % interval of the success rate: Blaker's, or the anytime-valid one if there is a rule, even if
        the whole list was played.
        """
        return (anytime_interval if self.rule else blaker)(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        errors = f", {self.errors} errors" if self.errors else ""
        partial = "" if self.complete else f" (PARTIAL: {self.listed} listed)"
        verdict = f", {self.decided or 'undecided'}" if self.verdict else ""
        return (
            f"{self.successes}/{self.episodes} = {self.success_rate:.2f} [{low:.2f},"
            f" {high:.2f}]{errors}{verdict}{partial}"
        )


def score_so_far(ledger: Ledger, suite: Suite, rule: StoppingRule | None) -> tuple[Score, list[Outcome]]:
    """Return the score of the outcomes in the ledger, and the outcomes that it counts, in playing order."""
    known, specs = ledger.read(), suite.episode_list()
    cut = blocks(specs, rule.look_every) if rule else [specs]
    verdict = ledger.verdict(rule.key) if rule else None
    counted = [known[spec.episode_id] for block in cut for spec in block if spec.episode_id in known]
    if verdict:
        counted = prefix(cut, known, verdict.episodes)
        verdict = verdict if len(counted) == verdict.episodes else None
    return Score.of(counted, len(specs), rule, verdict), counted


def protocol_key(
    suite: Suite,
    contract: Contract,
    sampler: SamplerConfig | None,
    gl: str,
    device: str = "cpu",
    packages: Mapping[str, str] | None = None,
    learner_code: Mapping[str, str] = MappingProxyType({}),
) -> Key:
    """Return everything except the weights that shapes an outcome: episodes, rules, conventions, GL backend,
    code, packages, sampler, device.

    sampler: how observations become actions; None for a policy that is not a demoscale checkpoint, whose own
    code, packages and device are unknown. device: device class of the policy servers
    (`cluster.ray_runtime.acting_device`). packages: versions by name, including at least those that count;
    the installed ones by default. learner_code: of the package that offers the policy
    (`code_fingerprint.learner_code`); empty for every other policy.
    """
    names = ACTING_PACKAGES if sampler else SIMULATING_PACKAGES
    versions = package_versions(names) if packages is None else packages
    parts = {
        "suite": suite.to_json(),
        "episode list": suite.fingerprint(),
        "contract": contract.to_json(),
        "sampler": sampler and sampler.model_dump(mode="json"),
        "GL": gl,
        "device": device if sampler else None,
        "packages": {name: versions[name] for name in names},
        "code": code_hashes(SCORING_CODE if sampler else SIMULATING_CODE),
    }
    if own := {task: plugin_code(task) for task in suite.tasks if is_plugin(task)}:
        parts["plug-ins"] = own
    if learner_code:
        parts["learner_code"] = dict(learner_code)
    return Key("score", parts)


def render_references_of(storage: Storage, gl: str, tasks: Iterable[str] = ()) -> RenderReferences:
    """Return the portraits that every simulator with this GL backend (`suite.gl`), this code and that of the
    tasks' plug-ins must match, on any suite.
    """
    own = [plugin_code(task) for task in sorted(set(tasks)) if is_plugin(task)]
    return RenderReferences(storage, digest([gl, code_fingerprint(SIMULATING_CODE), *own]), gl == MIXED)


def check_contract(policy: Contract, tasks: Iterable[str]) -> None:
    """Raise ProtocolError if a task's simulator on this machine cannot provide the conventions that the
    policy was trained on.
    """
    for task in tasks:
        if different := unfit(policy, task):
            raise ProtocolError(f"the policy cannot be scored on {task} here. " + "; ".join(different))


@dataclass(frozen=True)
class EvalJob:
    """One checkpoint to score on one suite."""

    arm_id: str
    step: int
    checkpoint: CheckpointRef
    """The policy; if it is no checkpoint, its name and the identity of its scores."""
    suite: Suite
    protocol: str
    source: PolicySource
    films: bool = False
    """Whether to film the first success and the first failure of every task."""
    rule: StoppingRule | None = None
    """Rule that may stop before the end of the list; None to play all of it."""
    reference: bool = False
    """Whether rules of other jobs compare with its outcomes."""
    arm: str = ""
    """Name of the arm in messages; empty for its id."""
    unit: str = "steps"
    """Unit of `step` in messages, `Train.unit`."""

    def __str__(self) -> str:
        """Return checkpoint and shift, for messages."""
        shifted = "" if self.suite.shift == "nominal" else f", {self.suite.shift} shifted"
        return f"{self.arm or self.arm_id} after {self.step} {self.unit}{shifted}"

    @property
    def shift(self) -> str:
        """Difference between the suite's scenes and the demonstrated ones."""
        return self.suite.shift

    @property
    def key(self) -> str:
        """Identity of the job: checkpoint and protocol."""
        return f"{self.checkpoint.uri} under {self.protocol}"


@dataclass(frozen=True)
class HeldOutJob:
    """One checkpoint whose action error is measured on held-out episodes."""

    arm_id: str
    step: int
    checkpoint: CheckpointRef
    protocol: str
    source: PolicySource
    arm: str
    """Name of the arm in messages."""
    shift: str = "nominal"
    """As for `EvalJob`: recordings have no shift."""
    reference: bool = False
    """As for `EvalJob`: no rule compares action errors."""
    unit: str = "steps"
    """As for `EvalJob`."""

    def __str__(self) -> str:
        """Return the checkpoint, for messages."""
        return f"{self.arm} after {self.step} {self.unit}"

    @property
    def key(self) -> str:
        """Identity of the job: checkpoint and protocol."""
        return f"{self.checkpoint.uri} under {self.protocol}"
