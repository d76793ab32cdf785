"""What a checkpoint is worth: successes out of the suite's episodes, and what has to be equal for two scores to be compared."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from orchestrator.code_fingerprint import SCORING_CODE, SIMULATING_CODE, code_fingerprint, code_hashes
from orchestrator.evaluation.outcome_ledger import Ledger, Portraits
from orchestrator.evaluation.sequential_rule import Rule, Verdict, beginning, blocks
from orchestrator.fingerprints import Key
from orchestrator.provenance import (
    ACTING_PACKAGES,
    SIMULATING_PACKAGES,
    digest,
    package_versions,
)
from orchestrator.stats.fixed_sample import wilson
from orchestrator.stats.sequential import anytime_interval
from orchestrator.storage.base import Storage
from policy.config import SamplerConfig
from policy.errors import DemoscaleError
from policy.interface import Contract
from sim_workers.envs.registry import unfit
from sim_workers.envs.render import MIXED
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.suite import Suite


class ProtocolError(DemoscaleError):
    """One sentence: the policy and the simulator disagree about a convention."""


@dataclass(frozen=True)
class Score:
    """Successes out of the suite's episodes. Complete only when every listed episode ended in success or failure, or when a rule had a verdict."""

    successes: int
    failures: int
    errors: int
    listed: int
    """Episodes in the suite."""
    once: int
    """Episodes in which the task was done at some step."""
    at_end: int
    """Episodes in which it was done in the last step played."""
    causes: tuple[tuple[str, str], ...] = ()
    """Of the errors: the episode and what happened."""
    rule: Rule | None = None
    """It was looked at while it came."""
    verdict: Verdict | None = None
    """The rule's; None while there is none."""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], listed: int, rule: Rule | None = None, verdict: Verdict | None = None) -> "Score":
        """Counted; the outcomes themselves are in the ledger. Where there is a verdict: those it rests on."""
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
        """Episodes that say something about the policy: the denominator."""
        return self.successes + self.failures

    @property
    def complete(self) -> bool:
        return self.verdict is not None if self.rule else self.episodes == self.listed

    @property
    def decided(self) -> str:
        """`above 0.8 after 40 of 200 listed`; empty if nothing was."""
        return f"{self.verdict.says} after {self.episodes} of {self.listed} listed" if self.verdict and self.verdict.says else ""

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson, or the anytime interval if it was looked at while it came, to the end of the list or not."""
        return (anytime_interval if self.rule else wilson)(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        errors = f", {self.errors} errors" if self.errors else ""
        partial = "" if self.complete else f" (PARTIAL: {self.listed} listed)"
        verdict = f", {self.decided or 'undecided'}" if self.verdict else ""
        return f"{self.successes}/{self.episodes} = {self.success_rate:.2f} [{low:.2f}, {high:.2f}]{errors}{verdict}{partial}"


def score_so_far(ledger: Ledger, suite: Suite, rule: Rule | None) -> tuple[Score, list[Outcome]]:
    """The score as far as the ledger has it, and the outcomes it counts, in the order they are played in."""
    known, specs = ledger.read(), suite.episode_list()
    cut = blocks(specs, rule.look_every) if rule else [specs]
    verdict = ledger.verdict(rule.key) if rule else None
    counted = [known[spec.episode_id] for block in cut for spec in block if spec.episode_id in known]
    if verdict:
        counted = beginning(cut, known, verdict.episodes)
        verdict = verdict if len(counted) == verdict.episodes else None
    return Score.of(counted, len(specs), rule, verdict), counted


def protocol_key(
    suite: Suite, contract: Contract, sampler: SamplerConfig | None, gl: str, device: str = "cpu", packages: Mapping[str, str] | None = None
) -> Key:
    """Return everything besides the weights that shapes an outcome: episodes, rules, conventions, GL backend, code, packages, sampler, device.

    sampler: how observations become actions; None for a policy that is not a checkpoint of ours, whose own code, packages and device are not
    known here. device: the class of what the policy servers compute on (`cluster.acting_device`). packages: versions by name, at least those
    that count; the installed ones by default.
    """
    names = ACTING_PACKAGES if sampler else SIMULATING_PACKAGES
    versions = package_versions(names) if packages is None else packages
    parts = {
        "suite": {"tasks": suite.tasks, "episodes": suite.episodes, "shift": suite.shift, "block": suite.block, **asdict(suite.rules)},
        "episode list": suite.fingerprint(),
        "contract": contract.to_json(),
        "sampler": sampler and sampler.model_dump(mode="json"),
        "GL": gl,
        "device": device if sampler else None,
        "packages": {name: versions[name] for name in names},
        "code": code_hashes(SCORING_CODE if sampler else SIMULATING_CODE),
    }
    return Key("score", parts)


def protocol_fingerprint(
    suite: Suite, contract: Contract, sampler: SamplerConfig | None, gl: str, device: str = "cpu", packages: Mapping[str, str] | None = None
) -> str:
    """Return the fingerprint of `protocol_key`."""
    return protocol_key(suite, contract, sampler, gl, device, packages).fingerprint


def portraits_of(storage: Storage, gl: str) -> Portraits:
    """What every simulator that draws with this backend and runs this code must match, whatever it plays; `gl`: `suite.gl`."""
    return Portraits(storage, digest([gl, code_fingerprint(SIMULATING_CODE)]), gl == MIXED)


def check_contract(policy: Contract, tasks: Iterable[str]) -> None:
    """ProtocolError if a task's simulator on this machine cannot give the policy what it was trained on."""
    for task in tasks:
        if different := unfit(policy, task):
            raise ProtocolError(f"the policy cannot be scored on {task} here. " + "; ".join(different))


@dataclass(frozen=True)
class ScoringJob:
    """One checkpoint to score on one suite."""

    arm_id: str
    step: int
    uri: str
    fingerprint: str
    suite: Suite
    protocol: str
    source: PolicySource
    films: bool = False
    """Film the first success and the first failure of every task."""
    rule: Rule | None = None
    """When to stop before the end of the list."""
    reference: bool = False
    """Others are held against it."""
    arm: str = ""
    """The arm's name, for people."""

    def __str__(self) -> str:
        """For people: the checkpoint, and the shift it meets."""
        shifted = "" if self.suite.shift == "nominal" else f", {self.suite.shift} shifted"
        return f"{self.arm or self.arm_id} after {self.step} steps{shifted}"

    @property
    def key(self) -> str:
        return f"{self.uri} under {self.protocol}"
