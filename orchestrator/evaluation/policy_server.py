"""The policy server: a Ray actor that holds checkpoints in memory and batches the queries of many
simulators.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.checkpoints.external_card import is_external
from orchestrator.checkpoints.reader import open_checkpoint
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.data.clips import ClipBatch
from orchestrator.prometheus import BATCH_FILL, REPLAN_LATENCY
from policy.config import AS_RUNG, ClipShape, SamplerSettings
from policy.interface import ActionChunk, Imagination, Observation, needs_of
from policy.sessions import AnsweredOnce
from sim_workers.arithmetic import Arithmetic
from sim_workers.checkout import Files, check_imported
from sim_workers.rollout.autoscaler import ServerUsage

_log = logging.getLogger(__name__)

REFUSED_S = 300.0
"""Seconds for which an external policy that could not be started is not started again: each query would wait
for its time limit.
"""


class _Asked(NamedTuple):
    question: Any
    """An observation; for a loss, clips and a seed."""
    answer: asyncio.Future[Any]
    since: float
    """Arrival, seconds of `time.perf_counter`."""


class PolicyServer:
    """A Ray actor that answers queries in batches. Deterministic: a query retried after a restart gets the
    same answer, or LostSessionError if the policy has memory and the query is not the first of its session.

    Queries that arrive while a batch is computed form the next one, so no query waits for a timer and batches
    fill under load. A query waits at most for the batches of earlier queries: policies take turns, and a
    batch has at most MOST_ROWS rows.
    """

    KEPT = 2  # policies kept loaded: that of the checkpoint being finished and that of the next
    MOST_ROWS = 64

    def __init__(
        self,
        num_threads: int,
        device: str,
        rung: str = "",
        sweep: str = "",
        code: Files | None = None,
        sampler: SamplerSettings = AS_RUNG,
    ) -> None:
        """Configure the server; policies are loaded at their first query.

        rung: rung of the policies' ladder that all of them use. sweep: name of the sweep, for metrics and
        logs. code: the driver's files; a server that imported others answers CodeChangedError. None: not
        compared. sampler: values in place of the rung's.
        """
        import torch

        torch.set_num_threads(num_threads)
        self._device, self._rung, self._sweep, self._code = device, rung, sweep, code
        self._sampler = sampler
        self._threads, self._loading = num_threads, threading.Lock()
        self._policies: OrderedDict[CheckpointRef, Any] = OrderedDict()
        # external policies that could not be started, with the time
        self._refused: dict[CheckpointRef, tuple[float, Exception]] = {}
        self._sessions: dict[CheckpointRef, AnsweredOnce] = {}  # of the loaded policies with memory
        # by checkpoint and method of the policy
        self._waiting: dict[tuple[CheckpointRef, str], list[_Asked]] = {}
        self._serving: asyncio.Task[None] | None = None
        self._answered: dict[CheckpointRef | None, ServerUsage] = {}  # by checkpoint; None: their sum

    def __repr__(self) -> str:
        return f"PolicyServer({self._sweep})"

    async def act(self, checkpoint: CheckpointRef, observation: Observation) -> ActionChunk:
        """Return the policy's action chunk. A checkpoint with a fingerprint is fetched once per node."""
        chunk: ActionChunk = await self._ask(checkpoint, "act", observation)
        return chunk

    async def imagine(self, checkpoint: CheckpointRef, observation: Observation) -> Imagination | None:
        """Return the video that the policy imagines, through the same queue as `act`; None for a policy
        without video.
        """
        imagination: Imagination | None = await self._ask(checkpoint, "imagine", observation)
        return imagination

    async def loss(self, checkpoint: CheckpointRef, clips: ClipBatch, seed: int) -> float | None:
        """Return the loss of the policy's actions on clips, through the same queue as `act`; None for a
        policy without one.
        """
        loss: float | None = await self._ask(checkpoint, "loss", (clips, seed))
        return loss

    async def clip(self, checkpoint: CheckpointRef) -> ClipShape | None:
        """Return the shape of the clips of `loss`; None for a policy without one."""
        shape: ClipShape | None = await self._ask(checkpoint, "clip", None)
        return shape

    async def _ask(self, checkpoint: CheckpointRef, what: str, question: Any) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((checkpoint, what), []).append(_Asked(question, answer, time.perf_counter()))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answer

    async def load(self, checkpoint: CheckpointRef) -> None:
        """Load the checkpoint's policy ahead of its first query. Raises the error of a checkpoint that cannot
        be loaded.
        """
        await asyncio.to_thread(self._loaded, checkpoint)

    async def answered(self, checkpoint: CheckpointRef | None = None) -> ServerUsage:
        """Return the work done since the server started, for one checkpoint; None: for all."""
        return self._answered.get(checkpoint, ServerUsage())

    async def work(self) -> dict[CheckpointRef | None, ServerUsage]:
        """Return `answered` of every checkpoint; None: their sum."""
        return dict(self._answered)

    async def arithmetic(self) -> str:
        """Return the arithmetic of this process in words."""
        return str(Arithmetic.here(self._device))

    async def _serve(self) -> None:
        while self._waiting:
            (checkpoint, what), asked = next(iter(self._waiting.items()))
            del self._waiting[checkpoint, what]
            if rest := asked[self.MOST_ROWS :]:
                self._waiting[checkpoint, what] = rest
            asked = asked[: self.MOST_ROWS]
            try:
                policy = await asyncio.to_thread(self._loaded, checkpoint)
                began = time.perf_counter()
                questions = [one.question for one in asked]
                answers = await asyncio.to_thread(self._answers, checkpoint, policy, what, questions)
                if len(answers) != len(asked):
                    raise ValueError(f"the policy gave {len(answers)} answers to {len(asked)} questions")
            except Exception as error:  # the callers receive the error; the server keeps running
                _log.exception("%s did not answer %d times: %s", _short(checkpoint), len(asked), what)
                for one in asked:
                    one.answer.set_exception(error)
            else:
                spent = time.perf_counter() - began
                done = {
                    "act": ServerUsage(1, len(asked), spent),
                    "imagine": ServerUsage(imagined_s=spent),
                    "loss": ServerUsage(busy_s=spent),
                    "clip": ServerUsage(),
                }[what]
                for of in (None, checkpoint):
                    self._answered[of] = self._answered.get(of, ServerUsage()) + done
                for one, told in zip(asked, answers, strict=True):
                    if isinstance(told, Exception):
                        one.answer.set_exception(told)
                    else:
                        one.answer.set_result(told)
                if what == "act":
                    self._measured(asked)

    def _answers(
        self, checkpoint: CheckpointRef, policy: Any, what: str, questions: list[Any]
    ) -> Sequence[ActionChunk | Imagination | ClipShape | float | Exception | None]:
        """Return the policy's answers; an Exception for an observation that a policy with memory cannot
        answer.
        """
        if what == "act":
            if needs_of(policy).memory:
                sessions = self._sessions.get(checkpoint)
                if sessions is None or sessions.policy is not policy:
                    sessions = self._sessions[checkpoint] = AnsweredOnce(policy)
                return sessions.answers(questions)
            chunks: list[ActionChunk] = policy.act(questions)
            return chunks
        if what == "clip":
            return [getattr(policy, "clip", None)] * len(questions)
        if what == "loss":
            if not hasattr(policy, "loss"):
                return [None] * len(questions)
            return [
                policy.loss(clips.to(policy.device, policy.normalizer), seed) for clips, seed in questions
            ]
        imaginations: list[Imagination] = policy.imagine(questions) if policy.imagines else []
        return imaginations or [None] * len(questions)

    def _measured(self, answered: list["_Asked"]) -> None:
        BATCH_FILL.record(len(answered) / self.MOST_ROWS, self._sweep)
        now = time.perf_counter()
        for one in answered:
            REPLAN_LATENCY.record(now - one.since, self._sweep)

    def _loaded(self, checkpoint: CheckpointRef) -> Any:
        with self._loading:  # `load` and queries arrive in different threads
            return self._load(checkpoint)

    def _load(self, checkpoint: CheckpointRef) -> Any:
        from orchestrator.checkpoints.node_cache import cached_checkpoint
        from policy.inference import TrainedPolicy

        if (loaded := self._policies.get(checkpoint)) and not getattr(loaded, "alive", True):
            _unload(self._policies.pop(checkpoint))  # its server ended; it is started again
            self._sessions.pop(checkpoint, None)
        since, refused = self._refused.get(checkpoint, (0.0, None))
        if refused and time.monotonic() - since < REFUSED_S:
            raise refused
        if checkpoint not in self._policies:
            with (
                nullcontext(cached_checkpoint(checkpoint.uri, checkpoint.fingerprint))
                if checkpoint.fingerprint
                else open_checkpoint(checkpoint.uri) as folder
            ):
                policy = (
                    self._served(folder, checkpoint)
                    if is_external(folder)
                    else TrainedPolicy(folder, self._device, self._rung, self._sampler)
                )
            check_imported(self._code)
            self._policies[checkpoint] = policy
            while len(self._policies) > self.KEPT:
                unloaded, old = self._policies.popitem(last=False)
                self._sessions.pop(unloaded, None)
                _unload(old)
        check_imported(self._code)  # includes modules that earlier answers imported
        self._policies.move_to_end(checkpoint)
        return self._policies[checkpoint]

    def _served(self, folder: Path, checkpoint: CheckpointRef) -> Any:
        """Return the policy of an external checkpoint. A server that failed to start is not started again for
        REFUSED_S.
        """
        # imported here: what an external policy needs is no part of how the project's own policies act
        from orchestrator.external.command import CommandError
        from orchestrator.external.serving import served

        try:
            return served(folder, checkpoint.fingerprint, self._device, self._threads)
        except CommandError as error:
            self._refused[checkpoint] = time.monotonic(), error
            raise


def _unload(policy: Any) -> None:
    """End the server of an external policy; other policies have none."""
    if close := getattr(policy, "close", None):
        close()


def _short(checkpoint: CheckpointRef) -> str:
    """Return arm and step, the end of the URIs of a sweep's checkpoints."""
    return checkpoint.uri.rpartition("/arms/")[2]
