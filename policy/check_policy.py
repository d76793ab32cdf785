"""Checks of a policy or a policy server against the interface: what scoring relies on, tried on random
observations. Needs numpy only.

`demoscale policy check` prints them. In a test of your own:

    from policy.check_policy import check_policy

    def test_my_policy() -> None:
        problems = [check for check in check_policy(MyPolicy()) if not check.passed]
        assert not problems, problems
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policy.http_protocol import one_line
from policy.interface import (
    ActionChunk,
    Contract,
    LostSessionError,
    Observation,
    Policy,
    PolicyNeeds,
    derived_seed,
    needs_of,
)

SESSION_OBSERVATIONS = 3
"""Observations of each session that is tried."""
TOLERANCE = 1e-3
"""Largest difference of actions that counts as rounding, where a batch is compared with single observations;
in the simulator's units.
"""


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    passed: bool
    finding: str
    """What was found, one line."""
    fix: str = ""
    """What to do about it; empty if it passed."""

    def __str__(self) -> str:
        fix = f". {self.fix}" if self.fix else ""
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.finding}{fix}"


class _FailedError(Exception):
    """A check has failed; arguments: finding and fix."""


def check_policy(
    policy: Policy,
    contract: Contract | None = None,
    instruction: str = "lift the red cube",
    latency_calls: int = 20,
    p95_limit_s: float = float("inf"),
    seed: int = 0,
) -> list[Check]:
    """Return the results of all checks; the first ones that fail may be why later ones do.

    contract: what the policy's contract must equal; None: not compared. latency_calls: measured queries of
    one observation. p95_limit_s: 95 % of them must be answered in this time. seed: seeds the observations.
    """
    checks = []
    trial = _Trial(policy, instruction, seed)
    tried: list[tuple[str, Callable[[], str]]] = [
        ("contract", lambda: trial.contract(contract)),
        ("shapes", trial.shapes),
        ("finite", trial.finite),
        ("inputs unchanged", trial.inputs),
        ("determinism by seed", trial.determinism),
        ("batch independence", trial.batches),
        *trial.session_checks(),
        ("latency", lambda: trial.latency(latency_calls, p95_limit_s)),
    ]
    for name, check in tried:
        try:
            checks.append(Check(name, True, check()))
        except _FailedError as failed:
            checks.append(Check(name, False, *failed.args))
        except Exception as error:  # whatever the policy raises
            checks.append(
                Check(name, False, f"the policy raised {one_line(error)}", "Make act() answer, or see above")
            )
        if name == "contract" and not checks[-1].passed and contract is None:
            break  # without a contract there are no observations to try
    return checks


class _Trial:
    """The checks of one policy. Each returns its finding, or raises _FailedError."""

    def __init__(self, policy: Policy, instruction: str, seed: int) -> None:
        self._policy, self._instruction, self._seed = policy, instruction, seed
        self._sessions = 0

    @property
    def _needs(self) -> PolicyNeeds:
        return needs_of(self._policy)

    def contract(self, wanted: Contract | None) -> str:
        contract = self._policy.contract
        if not contract.action:
            raise _FailedError("the contract names no action", "Name each action dimension in `action`")
        try:
            same = Contract.from_json(contract.to_json()) == contract
        except (TypeError, ValueError) as error:
            raise _FailedError(f"it is not valid: {error}", "Correct the field that it names") from None
        if not same:
            raise _FailedError(
                "it changes on its way through JSON", "Use tuples of text and plain numbers in its fields"
            )
        if wanted is not None and (differences := contract.mismatches(wanted)):
            raise _FailedError(
                "; ".join(differences), "State the conventions that the policy was trained with"
            )
        needs, size = self._needs, "x".join(map(str, contract.image_size))
        memory = "memory" if needs.memory else "no memory"
        return (
            f"{len(contract.cameras)} cameras of {size}, {len(contract.proprio)} proprioceptive values,"
            f" {len(contract.action)} action dimensions; {memory}, {needs.observation_steps} observation"
            f" step{'s' if needs.observation_steps > 1 else ''}"
        )

    def shapes(self) -> str:
        dimensions = len(self._policy.contract.action)
        for many in (1, 3):
            chunks = self._policy.act(self._first_observations(many))
            if not isinstance(chunks, (list, tuple)) or len(chunks) != many:
                raise _FailedError(
                    f"act() returned {_counted(chunks)} for {many} observations",
                    "Return a list with one ActionChunk per observation",
                )
            for chunk in chunks:
                actions = np.asarray(chunk.actions)
                if actions.shape[1:] != (dimensions,) or actions.dtype != np.float32:
                    raise _FailedError(
                        f"the actions of a chunk are {actions.dtype} {actions.shape}",
                        f"Return float32 of shape (steps, {dimensions}), one column per name in the"
                        " contract's `action`",
                    )
                if not 1 <= chunk.execute <= len(actions):
                    raise _FailedError(
                        f"execute is {chunk.execute} for {len(actions)} actions",
                        "Set execute to the number of actions to take before the next observation",
                    )
        return f"chunks of {len(actions)} steps, {chunk.execute} of them executed"

    def finite(self) -> str:
        chunks = self._policy.act(self._first_observations(4))
        if not all(np.isfinite(chunk.actions).all() for chunk in chunks):
            raise _FailedError(
                "an action is NaN or infinite",
                "Check the weights and the normalisation; a standard deviation of 0 is a usual cause",
            )
        values = np.stack([chunk.actions[0] for chunk in chunks])
        return f"actions between {values.min():.3g} and {values.max():.3g}"

    def inputs(self) -> str:
        observations = self._first_observations(2)
        before = copy.deepcopy(observations)
        self._policy.act(observations)
        for seen, was in zip(observations, before, strict=True):
            if not np.array_equal(seen.proprio, was.proprio) or any(
                not np.array_equal(seen.images[camera], was.images[camera]) for camera in was.images
            ):
                raise _FailedError("act() changed its observations", "Copy arrays before changing them")
        return "act() leaves its observations as they are"

    def determinism(self) -> str:
        observation, other = self._first_observations(2)
        first = self._alone(observation)
        self._alone(other)
        if not _equal(first, again := self._alone(self._in_new_session(observation))):
            raise _FailedError(
                "the same observation with the same noise seed got two answers, which differ by up to"
                f" {_difference(first, again):.3g}",
                "Seed every random draw from observation.noise_seed, set the model to evaluation mode, and"
                " keep nothing between calls unless the policy states memory = True",
            )
        reseeded = replace(self._in_new_session(observation), noise_seed=observation.noise_seed + 1)
        moved = "another" if not _equal(first, self._alone(reseeded)) else "the same"
        return f"equal seeds, equal answers; another seed gives {moved} answer"

    def batches(self) -> str:
        observations = self._first_observations(4)
        together = self._policy.act(observations)
        alone = [self._alone(self._in_new_session(observation)) for observation in observations]
        worst = max(_difference(a, b) for a, b in zip(together, alone, strict=True))
        if worst > TOLERANCE:
            raise _FailedError(
                f"answers in a batch of 4 differ by up to {worst:.3g} from those to single observations",
                "Let each row depend on its own observation only: seed noise per row, and normalise over no"
                " batch",
            )
        return "a batch of 4 and single observations get equal answers" + (
            f", up to rounding of {worst:.1e}" if worst else ""
        )

    def session_checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        try:
            memory = self._needs.memory
        except Exception:  # the contract's check reports it
            return
        if memory:
            yield "sessions", self.interleaved
            yield "sessions in a batch", self.batched
            yield "restart", self.restart
            yield "lost session", self.lost

    def interleaved(self) -> str:
        alone = [self._played([script])[0] for script in self._scripts(2)]
        turns = self._played(self._scripts(2))
        self._compare(alone, turns, "two sessions by turns")
        return f"two sessions by turns answer as each does alone, {SESSION_OBSERVATIONS} observations each"

    def batched(self) -> str:
        alone = [self._played([script])[0] for script in self._scripts(2)]
        together = self._played(self._scripts(2), batch=True)
        self._compare(alone, together, "two sessions in one batch", TOLERANCE)
        return "two sessions in one batch answer as each does alone"

    def restart(self) -> str:
        (script,) = self._scripts(1)
        first = self._played([script])
        again = self._played([script])
        self._compare(first, again, "a session that starts again at step 0")
        return "a session that starts again at step 0 forgets what was before"

    def lost(self) -> str:
        (script,) = self._scripts(1)
        try:
            self._policy.act([script[1]])
        except LostSessionError:
            return "a later step of an unknown session raises LostSessionError"
        except Exception as error:
            raise _FailedError(
                f"a later step of an unknown session raised {one_line(error)}", _RAISE_LOST
            ) from None
        raise _FailedError("a later step of an unknown session was answered", _RAISE_LOST)

    def latency(self, calls: int, limit_s: float) -> str:
        seconds = []
        for _ in range(calls):
            (observation,) = self._first_observations(1)
            began = time.perf_counter()
            self._policy.act([observation])
            seconds.append(time.perf_counter() - began)
        median, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
        finding = f"median {1e3 * median:.1f} ms, p95 {1e3 * p95:.1f} ms, of {calls} single observations"
        if p95 > limit_s:
            raise _FailedError(
                f"{finding}; the limit is {1e3 * limit_s:g} ms", "Use a faster sampler or device"
            )
        return finding

    # -- observations ----------------------------------------------------------------------------------------

    def _observation(self, number: int, episode: str, step: int) -> Observation:
        """Return the `number`-th random observation, with the history that the policy needs."""
        contract, preceding = self._policy.contract, self._needs.observation_steps - 1
        rng = np.random.default_rng([self._seed, number])
        observations: list[Observation] = []
        for k in range(-preceding, 1):
            if step + k > 0 or not observations:  # before the reset the first one is repeated
                images = {
                    camera: rng.integers(0, 256, (*contract.image_size, 3), dtype=np.uint8)
                    for camera in contract.cameras
                }
                proprio = rng.uniform(-1, 1, len(contract.proprio)).astype(np.float32)
            noise_seed = derived_seed(self._seed, number)
            at = max(0, step + k)
            observations.append(Observation(images, proprio, self._instruction, noise_seed, episode, at))
        return replace(observations[-1], history=tuple(observations[:-1]))

    def _first_observations(self, many: int) -> list[Observation]:
        """Return the first observations of new sessions."""
        return [self._observation(number, self._session(), 0) for number in range(many)]

    def _in_new_session(self, observation: Observation) -> Observation:
        """Return the observation as the first one of another session."""
        session = self._session()
        return replace(
            observation,
            episode=session,
            history=tuple(replace(seen, episode=session) for seen in observation.history),
        )

    def _session(self) -> str:
        self._sessions += 1
        return f"check-{self._seed}-{id(self):x}-{time.time_ns():x}-{self._sessions}"

    def _scripts(self, many: int) -> list[list[Observation]]:
        """Return the observations of sessions, new ones at each call, otherwise the same."""
        execute = self._alone(self._first_observations(1)[0]).execute
        scripts = []
        for i in range(many):
            session = self._session()
            scripts.append(
                [
                    self._observation(100 * (i + 1) + n, session, n * execute)
                    for n in range(SESSION_OBSERVATIONS)
                ]
            )
        return scripts

    def _played(self, scripts: list[list[Observation]], batch: bool = False) -> list[list[ActionChunk]]:
        """Return the answers to sessions whose observations take turns, or come in one batch."""
        answers: list[list[ActionChunk]] = [[] for _ in scripts]
        for observations in zip(*scripts, strict=True):
            chunks = (
                self._policy.act(observations)
                if batch
                else [self._alone(observation) for observation in observations]
            )
            for answer, chunk in zip(answers, chunks, strict=True):
                answer.append(chunk)
        return answers

    def _alone(self, observation: Observation) -> ActionChunk:
        return self._policy.act([observation])[0]

    def _compare(
        self,
        wanted: list[list[ActionChunk]],
        found: list[list[ActionChunk]],
        what: str,
        tolerance: float = 0.0,
    ) -> None:
        for session, (mine, theirs) in enumerate(zip(wanted, found, strict=True)):
            for observation, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                if _difference(a, b) > tolerance:
                    raise _FailedError(
                        f"{what} answer otherwise than alone, from observation {observation + 1} of session"
                        f" {session + 1} on",
                        "Keep all state by observation.episode and start it again at step 0, e.g. with"
                        " policy.sessions.SessionStates",
                    )


_RAISE_LOST = (
    "Raise policy.interface.LostSessionError, as policy.sessions.SessionStates does; the episode is then"
    " played again"
)


def _counted(chunks: object) -> str:
    return f"{len(chunks)} chunks" if isinstance(chunks, Sequence) else f"a {type(chunks).__name__}"


def _difference(a: ActionChunk, b: ActionChunk) -> float:
    """Return the largest difference of two chunks' actions; infinite if they differ otherwise."""
    if a.actions.shape != b.actions.shape or a.execute != b.execute:
        return float("inf")
    return float(np.abs(a.actions.astype(np.float64) - b.actions).max())


def _equal(a: ActionChunk, b: ActionChunk) -> bool:
    return _difference(a, b) == 0.0
