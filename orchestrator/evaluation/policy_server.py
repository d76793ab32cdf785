"""The policy server: checkpoints in memory, asked by many simulators at once."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from orchestrator.checkpoints.reader import at_hand
from orchestrator.prometheus import BATCH_FILL, REPLAN_LATENCY
from policy.interface import ActionChunk, Imagination, Observation
from sim_workers.checkout import Files, check_imported
from sim_workers.rollout.autoscaler import Answered

_log = logging.getLogger(__name__)

FINGERPRINT = "#checkpoint="
"""Between a checkpoint's URI and its fingerprint."""


def policy_of(uri: str, fingerprint: str) -> str:
    """How a server is asked for the policy of a checkpoint that must have this fingerprint."""
    return f"{uri}{FINGERPRINT}{fingerprint}"


class _Asked(NamedTuple):
    observation: Observation
    answer: asyncio.Future[Any]
    since: float
    """By `time.perf_counter`."""


class PolicyServer:
    """A Ray actor. Deterministic: asked again after it died, it gives the same answer.

    What arrives while a batch is computed forms the next one, so nobody waits for a timer and the batch fills itself under load. Nobody waits
    longer than for the batches of those who asked before: policies take turns, and a batch has at most MOST_ROWS rows.
    """

    KEPT = 2  # policies kept loaded: the one that finishes and the one that begins
    MOST_ROWS = 64

    def __init__(self, num_threads: int, device: str, rung: str = "", sweep: str = "", code: Files | None = None) -> None:
        """rung: of the policies' ladder, on which all of them act. sweep: whose they are, for metrics and logs.

        code: the driver's files; a server that imported others answers CodeChangedError. None: not compared.
        """
        import torch

        torch.set_num_threads(num_threads)
        self._device, self._rung, self._sweep, self._code = device, rung, sweep, code
        self._policies: OrderedDict[str, Any] = OrderedDict()
        self._waiting: dict[tuple[str, str], list[_Asked]] = {}  # by checkpoint and what is asked of it
        self._serving: asyncio.Task[None] | None = None
        self._answered: dict[str, Answered] = {}  # by checkpoint; under no name: for all

    def __repr__(self) -> str:
        return f"PolicyServer({self._sweep})"

    async def act(self, checkpoint: str, observation: Observation) -> ActionChunk:
        """The chunk that the policy of the checkpoint answers: `policy_of`, fetched once per node, or a URI alone."""
        chunk: ActionChunk = await self._ask(checkpoint, "act", observation)
        return chunk

    async def imagine(self, checkpoint: str, observation: Observation) -> Imagination | None:
        """What that policy expects to see, in the same queue: a network computes one batch at a time. None of one that imagines nothing."""
        imagination: Imagination | None = await self._ask(checkpoint, "imagine", observation)
        return imagination

    async def _ask(self, checkpoint: str, what: str, observation: Observation) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((checkpoint, what), []).append(_Asked(observation, answer, time.perf_counter()))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answer

    async def load(self, checkpoint: str) -> None:
        """Have it ready; raises what is wrong with it."""
        await asyncio.to_thread(self._loaded, checkpoint)

    async def answered(self, checkpoint: str = "") -> Answered:
        """What it has done since it started, for one checkpoint or for all."""
        return self._answered.get(checkpoint, Answered())

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
                answers = await asyncio.to_thread(_answers, policy, what, [one.observation for one in asked])
            except Exception as error:  # whoever asked gets the error; the server lives on
                _log.exception("%s did not answer %d observations", _short(checkpoint), len(asked))
                for one in asked:
                    one.answer.set_exception(error)
            else:
                spent = time.perf_counter() - began
                done = Answered(1, len(asked), spent) if what == "act" else Answered(imagined_s=spent)
                for name in ("", checkpoint):
                    self._answered[name] = self._answered.get(name, Answered()) + done
                for one, told in zip(asked, answers, strict=True):
                    one.answer.set_result(told)
                if what == "act":
                    self._measured(asked)

    def _measured(self, answered: list["_Asked"]) -> None:
        BATCH_FILL.record(len(answered) / self.MOST_ROWS, self._sweep)
        now = time.perf_counter()
        for one in answered:
            REPLAN_LATENCY.record(now - one.since, self._sweep)

    def _loaded(self, checkpoint: str) -> Any:
        from orchestrator.checkpoints.node_cache import kept
        from policy.inference import TrainedPolicy

        if checkpoint not in self._policies:
            uri, _, fingerprint = checkpoint.rpartition(FINGERPRINT)
            with nullcontext(kept(uri, fingerprint)) if uri else at_hand(checkpoint) as folder:
                policy = TrainedPolicy(folder, self._device, self._rung)
            check_imported(self._code)
            self._policies[checkpoint] = policy
            while len(self._policies) > self.KEPT:
                self._policies.popitem(last=False)
        check_imported(self._code)  # of what answers imported since
        self._policies.move_to_end(checkpoint)
        return self._policies[checkpoint]


def _short(checkpoint: str) -> str:
    """Arm and step: what a sweep's URIs end in."""
    return checkpoint.rpartition("/arms/")[2].partition(FINGERPRINT)[0]


def _answers(policy: Any, what: str, observations: list[Observation]) -> Sequence[ActionChunk | Imagination | None]:
    if what == "act":
        chunks: list[ActionChunk] = policy.act(observations)
        return chunks
    imaginations: list[Imagination] = policy.imagine(observations) if policy.imagines else []
    return imaginations or [None] * len(observations)
