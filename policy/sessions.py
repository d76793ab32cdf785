"""Sessions of policies with memory: states per session for those who write one, and what a server of one
needs. Imports the standard library and `policy.interface` only.

A session is one playing of an episode, identified by `Observation.episode`. It starts at an observation with
step 0. An observation of a later step whose session is not known raises LostSessionError, and the rollout
worker plays the episode again from its start in a new session.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from policy.interface import ActionChunk, LostSessionError, Observation, Policy
from policy.untrusted import printable

MOST_SESSIONS = 1024
"""Maximum number of sessions kept at once; a further one ends the one that has been idle longest."""

State = TypeVar("State")


class SessionStates(Generic[State]):
    """State of a policy for each of its sessions.

    begin: returns the state of a new session; called with its first observation. most: maximum number of
    states; a further session ends the one that has been idle longest.
    """

    def __init__(self, begin: Callable[[Observation], State], most: int = MOST_SESSIONS) -> None:
        self._begin, self._most = begin, most
        self._states: OrderedDict[str, State] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def of(self, observation: Observation) -> State:
        """Return the state of the observation's session, to be changed in place: a new one for step 0.

        Raises LostSessionError for a later step of an unknown session. Take the states of a whole batch
        before changing any, so that an error leaves all of them as they were.
        """
        session = observation.episode
        if observation.step == 0:
            self._states[session] = self._begin(observation)
        elif session not in self._states:
            raise lost(observation)
        self._states.move_to_end(session)
        while len(self._states) > self._most:
            self._states.popitem(last=False)
        return self._states[session]


def lost(observation: Observation) -> LostSessionError:
    """Return the error of an observation whose session is unknown."""
    return LostSessionError(
        f"the policy does not know the session {printable(observation.episode, 80)!r} of an observation at"
        f" step {observation.step}: its server was restarted, or has dropped the session",
        "play the episode again from its start",
    )


class AnsweredOnce:
    """Answers of a policy with memory, each given once: a repeated observation, such as that of a client
    whose connection broke, gets the same answer again and does not advance its session.

    For servers. Not for several threads at once.
    """

    def __init__(self, policy: Policy, most: int = MOST_SESSIONS) -> None:
        """most: maximum number of sessions; a further one ends the one that has been idle longest."""
        self.policy, self._most = policy, most
        self._last: OrderedDict[str, tuple[int, ActionChunk]] = OrderedDict()
        """The last step of each session and its answer; the session that has been idle longest is first."""

    def __len__(self) -> int:
        return len(self._last)

    def answers(self, observations: Sequence[Observation]) -> list[ActionChunk | Exception]:
        """Return a chunk for every observation, or why it has none; the others are answered all the same.

        LostSessionError: its session is unknown, or the policy failed on a batch of several sessions, which
        are unknown from then on. ValueError: another step of its session is in the batch, or was answered
        later. Any other error is the policy's own.
        """
        answers: dict[int, ActionChunk | Exception] = {}
        asked: dict[str, list[int]] = {}
        """Indices of the observations of each session that the policy must answer."""
        for i, seen in enumerate(observations):
            if indices_so_far := asked.get(seen.episode):
                if observations[indices_so_far[0]].step == seen.step:
                    indices_so_far.append(i)
                else:
                    answers[i] = ValueError(
                        f"two steps of the session {printable(seen.episode, 80)!r} were sent at once; send"
                        " the next one after the answer"
                    )
            elif (answer := self._known(seen)) is not None:
                answers[i] = answer
            else:
                asked[seen.episode] = [i]
        first = [observations[indices[0]] for indices in asked.values()]
        for seen, answer in zip(first, self._ask(first), strict=True):
            answers |= dict.fromkeys(asked[seen.episode], answer)
        return [answers[i] for i in range(len(observations))]

    def _known(self, seen: Observation) -> ActionChunk | Exception | None:
        """Return the answer that needs no policy; None if the policy must be asked."""
        if seen.step == 0:
            return None
        if seen.episode not in self._last:
            return lost(seen)
        step, chunk = self._last[seen.episode]
        if seen.step < step:
            return ValueError(
                f"the session {printable(seen.episode, 80)!r} is at step {step}; step {seen.step} is over"
            )
        return chunk if seen.step == step else None

    def _ask(self, observations: list[Observation]) -> Sequence[ActionChunk | Exception]:
        """Return the policy's answers to observations of different sessions."""
        if not observations:
            return []
        for seen in observations:
            self._last.pop(seen.episode, None)
        try:
            chunks = self.policy.act(observations)
            if len(chunks) != len(observations):
                raise ValueError(
                    f"the policy answered {len(observations)} observations with {len(chunks)} chunks"
                )
        except Exception as error:
            if len(observations) > 1:
                error = LostSessionError(
                    f"the policy failed on a batch of {len(observations)} sessions: {error}"
                )
            return [error] * len(observations)
        for seen, chunk in zip(observations, chunks, strict=True):
            self._last[seen.episode] = seen.step, chunk
        while len(self._last) > self._most:
            self._last.popitem(last=False)
        return chunks
