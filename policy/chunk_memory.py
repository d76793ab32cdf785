"""Two usual ways of acting from chunks that need memory, around any policy: a queue of actions, and temporal
ensembling. Both answer one action per control step. They are also examples of policies that keep their state
with `policy.sessions.SessionStates`.

    from policy.chunk_memory import TemporalEnsembling
    serve(TemporalEnsembling(policy))
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from policy.interface import ActionChunk, Observation, Policy, needs_of
from policy.sessions import MOST_SESSIONS, SessionStates

_Actions = npt.NDArray[np.float32]


class ActionQueue:
    """A policy that is asked at every control step and queries `policy` when the actions of its last chunk
    are used up.

    execute: number of actions of a chunk that are used; None: as many as the chunk says.
    """

    memory = True

    def __init__(
        self, policy: Policy, execute: int | None = None, most_sessions: int = MOST_SESSIONS
    ) -> None:
        self._policy, self._execute = policy, execute
        self.contract, self.observation_steps = policy.contract, needs_of(policy).observation_steps
        self._queues = SessionStates[deque[_Actions]](lambda _: deque(), most_sessions)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one action per observation. Raises LostSessionError for a later step of an unknown
        session.
        """
        queues = [self._queues.of(observation) for observation in observations]
        empty = [i for i, queue in enumerate(queues) if not queue]
        chunks = self._policy.act([observations[i] for i in empty]) if empty else []
        for i, chunk in zip(empty, chunks, strict=True):
            queues[i].extend(chunk.actions[: self._execute or chunk.execute])
        return [ActionChunk(queue.popleft()[None], 1) for queue in queues]


class TemporalEnsembling:
    """A policy that queries `policy` at every control step and answers with a weighted mean of what all
    chunks so far say about this step (ACT, arXiv 2304.13705, section IV).

    decay: the chunk that is i chunks younger than the oldest one has the weight exp(-decay * i).
    """

    memory = True

    def __init__(self, policy: Policy, decay: float = 0.01, most_sessions: int = MOST_SESSIONS) -> None:
        self._policy, self._decay = policy, decay
        self.contract, self.observation_steps = policy.contract, needs_of(policy).observation_steps
        self._chunks = SessionStates[list[tuple[int, _Actions]]](lambda _: [], most_sessions)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one action per observation. Raises LostSessionError for a later step of an unknown
        session.
        """
        states = [self._chunks.of(observation) for observation in observations]
        answers = self._policy.act(observations)
        return [
            self._mean(chunks, observation.step, answer.actions)
            for chunks, observation, answer in zip(states, observations, answers, strict=True)
        ]

    def _mean(self, chunks: list[tuple[int, _Actions]], step: int, newest: _Actions) -> ActionChunk:
        """Add the newest chunk to those of a session, drop the ones that ended before `step`, and return the
        mean for `step`.
        """
        chunks.append((step, newest))
        chunks[:] = [(first, actions) for first, actions in chunks if step - first < len(actions)]
        said = np.stack([actions[step - first] for first, actions in chunks])
        weights = np.exp(-self._decay * np.arange(len(said)))
        mean = (weights[:, None] * said).sum(axis=0) / weights.sum()
        return ActionChunk(mean.astype(np.float32)[None], 1)
