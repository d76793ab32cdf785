"""Checks of policies: each mistake fails the check that is about it, and comes with a fix."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import run

from http_policies import CONTRACT, Digest, Remembering, served
from orchestrator.cli.policy_commands import policy as command
from policy.check_policy import check_policy
from policy.chunk_memory import TemporalEnsembling
from policy.interface import ActionChunk, Observation, Policy


class Answering(Digest):
    """A policy that answers with what a function makes of the digest."""

    def __init__(self, change: Callable[[Observation, ActionChunk], ActionChunk]) -> None:
        super().__init__()
        self._change = change

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._change(seen, self._one(seen)) for seen in observations]


def with_actions(change: Callable[[np.ndarray], np.ndarray]) -> Policy:
    def changed(seen: Observation, chunk: ActionChunk) -> ActionChunk:
        object.__setattr__(chunk, "actions", change(chunk.actions))
        return chunk

    return Answering(changed)


class FewChunks(Digest):
    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return super().act(observations)[:1]


class OfTheBatch(Digest):
    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = super().act(observations)
        mean = np.mean([chunk.actions for chunk in chunks], axis=0)
        return [ActionChunk((chunk.actions - mean).astype(np.float32), chunk.execute) for chunk in chunks]


class Counting(Digest):
    """It remembers, and does not say so."""

    asked = 0

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.asked += 1
        return [ActionChunk(np.full((2, 2), self.asked, np.float32), 1) for _ in observations]


class OneForAll(Digest):
    """It remembers, for all sessions together."""

    memory = True
    total = 0.0

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = []
        for seen in observations:
            self.total = (0.0 if seen.step == 0 else self.total) + float(seen.proprio.sum())
            chunks.append(ActionChunk(np.full((3, 2), self.total, np.float32), 2))
        return chunks


class NeverAnew(Digest):
    """It remembers per session, and does not start again at step 0."""

    memory = True

    def __init__(self) -> None:
        super().__init__()
        self._totals: dict[str, float] = {}

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        for seen in observations:
            self._totals[seen.episode] = self._totals.get(seen.episode, 0.0) + float(seen.proprio.sum())
        return [
            ActionChunk(np.full((3, 2), self._totals[seen.episode], np.float32), 2) for seen in observations
        ]


def scribble(seen: Observation, chunk: ActionChunk) -> ActionChunk:
    seen.proprio[:] = 0
    return chunk


MISTAKES: dict[str, tuple[Policy, set[str]]] = {
    "float64": (with_actions(lambda actions: actions.astype(np.float64)), {"shapes"}),
    "three dimensions": (with_actions(lambda actions: np.zeros((5, 3), np.float32)), {"shapes"}),
    "too few chunks": (FewChunks(), {"shapes"}),
    "NaN": (with_actions(lambda actions: actions * np.float32("nan")), {"finite"}),
    "inputs": (Answering(scribble), {"inputs unchanged"}),
    "batch": (OfTheBatch(), {"batch independence"}),
    "hidden memory": (Counting(), {"determinism by seed"}),
    "one memory": (OneForAll(), {"sessions", "sessions in a batch", "lost session"}),
    "never anew": (NeverAnew(), {"restart", "lost session"}),
    "no action": (type("P", (Digest,), {"contract": replace(CONTRACT, action=())})(), {"contract"}),
    "needs": (type("P", (Digest,), {"observation_steps": 0})(), {"contract"}),
}


@pytest.mark.parametrize("policy", [Digest(), Remembering(), TemporalEnsembling(Digest())])
def test_good_policy_passes_all_checks_in_process_and_over_http(policy: Policy) -> None:
    for check in check_policy(policy, CONTRACT):
        assert check.passed, check
        assert not check.fix
    from policy.http_policy import RemotePolicy

    with served(policy) as url:
        checks = check_policy(RemotePolicy(url))
        assert all(check.passed for check in checks), checks
    names = [check.name for check in checks]
    assert ("lost session" in names) == (not isinstance(policy, Digest) or isinstance(policy, Remembering))


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_fails_the_check_that_is_about_it(name: str) -> None:
    policy, failing = MISTAKES[name]
    checks = check_policy(policy, latency_calls=1)
    failed = {check.name for check in checks if not check.passed}
    assert failing <= failed, checks
    for check in checks:
        assert check.passed or (check.finding and check.fix), check
        assert "\n" not in str(check)


def test_check_compares_the_contract_and_the_latency() -> None:
    slow = Digest()
    slow.delay_s = 0.02
    checks = {
        check.name: check
        for check in check_policy(slow, replace(CONTRACT, control_hz=10.0), latency_calls=2, p95_limit_s=0.01)
    }
    assert (
        "control rate in Hz: the policy was trained with 20.0, here it is 10.0" in checks["contract"].finding
    )
    assert "the limit is 10 ms" in checks["latency"].finding


def test_command_prints_a_line_per_check_and_fails_with_them() -> None:
    with served(Digest()) as url:
        done = CliRunner().invoke(command, ["check", url, "--calls", "2"])
        assert done.exit_code == 0, done.output
        assert all(line.startswith("ok  ") for line in done.output.splitlines())
    with served(MISTAKES["batch"][0]) as url:
        done = CliRunner().invoke(command, ["check", url, "--calls", "2", "--json"])
    assert done.exit_code == 1
    told = {one["name"]: one for one in json.loads(done.output)}
    assert not told["batch independence"]["passed"]
    assert told["batch independence"]["fix"]


def test_command_refuses_what_is_no_policy() -> None:
    for name, says in (("nothing", "names no policy"), ("json:dumps2", "has no dumps2")):
        done = CliRunner().invoke(command, ["check", name])
        assert done.exit_code == 2
        assert says in done.output
    done = CliRunner().invoke(command, ["check", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "no policy server answers" in done.output


def test_checking_imports_neither_ray_nor_a_simulator() -> None:
    done = run(
        "-c",
        "import sys\nfrom orchestrator.cli.policy_commands import policy\nimport policy.check_policy\n"
        "from sim_workers.rollout.policy_clients import FactoryPolicy\n"
        "print([m for m in ('ray', 'robosuite', 'torch', 'mlflow') if m in sys.modules])",
    )
    assert done.stdout.strip() == "[]"
