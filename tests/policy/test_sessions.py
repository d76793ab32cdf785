"""Policies with memory: states per session, answers given once, and both over HTTP."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from http_policies import CONTRACT, Digest, Remembering, look, same, served
from policy.chunk_memory import ActionQueue, TemporalEnsembling
from policy.http_policy import RemotePolicies, RemotePolicy
from policy.http_protocol import RemoteError
from policy.interface import (
    ActionChunk,
    LostSessionError,
    Observation,
    Policy,
    PolicyNeeds,
    needs_of,
)
from policy.sessions import AnsweredOnce, SessionStates


def script(session: str, seed: int = 0) -> list[Observation]:
    return [look(seed + n, session, 2 * n) for n in range(4)]


def played(policy: Policy, looks: Sequence[Observation]) -> list[ActionChunk]:
    return [policy.act([one])[0] for one in looks]


# -- needs ---------------------------------------------------------------------------------------------------


def test_needs_of_a_policy_are_its_attributes() -> None:
    assert needs_of(Digest()) == PolicyNeeds(memory=False, observation_steps=1)
    assert needs_of(Remembering()) == PolicyNeeds(memory=True, observation_steps=3)


@pytest.mark.parametrize(
    "needs",
    [
        {"memory": 1},
        {"observation_steps": 0},
        {"observation_steps": 2.0},
        {"observation_steps": True},
        {"observation_steps": 65},
    ],
)
def test_needs_refuse_other_values_naming_the_field(needs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(needs))):
        PolicyNeeds(**needs)  # type: ignore[arg-type]


# -- states --------------------------------------------------------------------------------------------------


def test_session_states_begin_at_step_0_and_are_lost_if_unknown() -> None:
    states = SessionStates[list[int]](lambda seen: [seen.noise_seed])
    first = states.of(look(1, "a", 0))
    first.append(7)
    assert states.of(look(2, "a", 2)) is first
    assert states.of(look(1, "a", 0)) == [look(1, "a", 0).noise_seed], "step 0 starts it again"
    with pytest.raises(LostSessionError, match="'b' of an observation at step 2"):
        states.of(look(1, "b", 2))


def test_session_states_end_the_session_that_was_idle_longest() -> None:
    states = SessionStates[list[int]](lambda _: [], most=2)
    for session in "ab":
        states.of(look(1, session, 0))
    states.of(look(1, "a", 2))
    states.of(look(1, "c", 0))
    assert len(states) == 2
    states.of(look(1, "a", 4))
    with pytest.raises(LostSessionError):
        states.of(look(1, "b", 2))


# -- answers given once --------------------------------------------------------------------------------------


def test_repeated_observation_gets_its_answer_again() -> None:
    alone, once = Remembering(), AnsweredOnce(policy := Remembering())
    wanted = played(alone, script("s"))
    told = []
    for one in script("s"):
        (answer,) = once.answers([one])
        (again,) = once.answers([one])
        assert isinstance(answer, ActionChunk)
        assert isinstance(again, ActionChunk)
        assert same([answer], [again])
        told.append(answer)
    assert same(told, wanted)
    twice = once.answers([script("s")[3], *[look(9, "s", 8)] * 2])
    assert len(policy.sizes) == 5 + 1, "step 0 is asked again, every later step once"
    assert [type(answer).__name__ for answer in twice] == ["ActionChunk"] * 3
    assert twice[1] is twice[2]


def test_refused_observations_leave_the_others_of_a_batch_alone() -> None:
    once = AnsweredOnce(Remembering())
    a, b = script("a"), script("b", seed=50)
    once.answers([a[0], b[0]])
    answers = once.answers([a[1], look(3, "unknown", 4), b[1], look(4, "b", 3)])
    assert [type(answer).__name__ for answer in answers] == [
        "ActionChunk",
        "LostSessionError",
        "ActionChunk",
        "ValueError",
    ]
    alone = Remembering()
    wanted = played(alone, a[:2])[1:] + played(alone, b[:2])[1:]
    assert same([answers[0], answers[2]], wanted)  # type: ignore[list-item]
    (late,) = once.answers([a[0] if a[0].step else replace(a[1], step=1)])
    assert "is at step 2; step 1 is over" in str(late)


def test_failed_batch_ends_its_sessions() -> None:
    once = AnsweredOnce(Remembering())
    a, b = script("a"), script("b", seed=50)
    once.answers([a[0], b[0]])
    broken = replace(b[1], instruction="break")
    answers = once.answers([a[1], broken])
    assert all(isinstance(answer, LostSessionError) and "NaN" in str(answer) for answer in answers)
    assert isinstance(once.answers([a[2]])[0], LostSessionError)
    (alone,) = once.answers([replace(broken, step=0)])
    assert isinstance(alone, RuntimeError), "its own error, where it was asked alone"


# -- over HTTP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", [False, True])
def test_sessions_over_http_answer_as_in_process(join: bool) -> None:
    scripts = [script(f"s{i}", seed=10 * i) for i in range(4)]
    wanted = [played(Remembering(), one) for one in scripts]
    policy = Remembering()
    with served(policy, join=join) as url:
        remote = RemotePolicy(url)
        assert (remote.memory, remote.observation_steps) == (True, 3)
        with ThreadPoolExecutor(4) as threads:
            told = [*threads.map(lambda one: played(RemotePolicy(url), one), scripts)]
        assert all(same(a, b) for a, b in zip(told, wanted, strict=True))
        together = [remote.act([one[n] for one in scripts]) for n in range(4)]
    assert all(same([*a], b) for a, b in zip(zip(*together, strict=True), wanted, strict=True))


def test_policy_server_reports_a_lost_session() -> None:
    with (
        served(Remembering()) as url,
        pytest.raises(LostSessionError, match=f"{url}.*does not know the session 'gone'"),
    ):
        RemotePolicy(url).act([look(0, "gone", 2)])


def test_policy_server_bounds_its_sessions() -> None:
    with served(Remembering(most=2)) as url:
        remote = RemotePolicy(url)
        for session in "abc":
            remote.act([look(0, session, 0)])
        assert remote.act([look(1, "c", 2)])
        with pytest.raises(LostSessionError):
            remote.act([look(1, "a", 2)])


def test_request_with_a_session_twice_is_refused() -> None:
    with served(Remembering()) as url, pytest.raises(RemoteError, match="episodes holds 's' twice"):
        RemotePolicy(url).act([look(0, "s", 0), look(1, "s", 0)])


def test_history_of_another_length_is_not_sent() -> None:
    with (
        served(Remembering()) as url,
        pytest.raises(RemoteError, match="history of 0 observations, and the policy takes 2"),
    ):
        RemotePolicy(url).act([replace(look(0, "s", 0), history=())])


def test_client_passes_to_the_next_server_and_loses_its_session() -> None:
    with served(Remembering()) as second:
        with served(Remembering()) as first:
            policies = RemotePolicies([first, second], patience_s=0.1)
            assert policies.contract == CONTRACT
            wanted = played(Remembering(), script("a")[:2])
            assert same(played(policies, script("a")[:2]), wanted)
        for server in policies._servers:
            server.close()  # the first server's connections outlive it
        with pytest.raises(LostSessionError, match="no policy server answers"):
            policies.act([script("a")[2]])
        assert same(played(policies, script("b")[:2]), wanted)
    for server in policies._servers:
        server.close()
    with pytest.raises(RemoteError, match="no policy server answers"):
        policies.act([script("c")[0]])


def test_policy_without_memory_is_sent_nothing_new() -> None:
    """A client that sends neither sessions nor history, and a server that knows neither."""
    with served(Digest()) as url:
        remote = RemotePolicy(url)
        assert not remote.memory
        assert same(remote.act(script("s")), Digest().act(script("s")))


# -- chunks with memory --------------------------------------------------------------------------------------


class Counting:
    """A policy of which step t of a chunk that was asked at step s is [s, t]."""

    contract = CONTRACT

    def __init__(self) -> None:
        self.asked = 0

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.asked += len(observations)
        return [
            ActionChunk(np.array([[seen.step, seen.step + t] for t in range(4)], np.float32), 3)
            for seen in observations
        ]


def test_action_queue_takes_a_chunk_apart() -> None:
    queue = ActionQueue(inner := Counting())
    told = [queue.act([look(0, s, step, 0) for s in "ab"]) for step in range(7)]
    for a, b in told:
        assert same([a], [b])
    assert [chunk.actions[0].tolist() for chunk, _ in told] == [[s - s % 3, s] for s in range(7)]
    assert inner.asked == 2 * 3


def test_temporal_ensembling_weighs_what_all_chunks_say() -> None:
    ensemble = TemporalEnsembling(Counting(), decay=0.5)
    told = [ensemble.act([look(0, "a", step, 0)])[0].actions[0] for step in range(6)]
    for step, action in enumerate(told):
        asked = [first for first in range(step + 1) if step - first < 4]
        weights = np.exp(-0.5 * np.arange(len(asked)))
        assert action == pytest.approx([weights @ asked / weights.sum(), step])


def test_threads_of_one_session_are_answered_in_turns() -> None:
    """A client that repeats a request while the first one is computed gets the same answer."""
    policy = Remembering()
    with served(policy, join=True) as url:
        RemotePolicy(url).act([script("s")[0]])
        policy.delay_s, told = 0.2, []
        threads = [
            threading.Thread(target=lambda: told.append(RemotePolicy(url).act([script("s")[1]])[0]))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(told) == 3
    assert same(told[:2], told[1:])
    assert sum(policy.sizes) == 2
