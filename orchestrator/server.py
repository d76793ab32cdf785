"""The policy server: checkpoints in memory, asked by many simulators at once."""

import asyncio
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.storage import download
from policy.interface import ActionChunk, Imagination, Observation
from sim_workers.balance import Answered

FINGERPRINT = "#checkpoint="
"""Between a checkpoint's URI and its fingerprint."""


def policy_of(uri: str, fingerprint: str) -> str:
    """How a server is asked for the policy of a checkpoint that must have this fingerprint."""
    return f"{uri}{FINGERPRINT}{fingerprint}"


class PolicyServer:
    """A Ray actor. Deterministic: asked again after it died, it gives the same answer.

    What arrives while a batch is computed forms the next one, so nobody waits for a timer and the batch fills itself under load. Nobody waits
    longer than for the batches of those who asked before: policies take turns, and a batch has at most MOST_ROWS rows.
    """

    KEPT = 2  # policies kept loaded: the one that finishes and the one that begins
    MOST_ROWS = 64

    def __init__(self, num_threads: int, device: str, rung: str = "") -> None:
        """rung: of the policies' ladder, on which all of them act."""
        import torch

        torch.set_num_threads(num_threads)
        self._device, self._rung = device, rung
        self._policies: OrderedDict[str, Any] = OrderedDict()
        self._waiting: dict[tuple[str, str], list[tuple[Observation, asyncio.Future[Any]]]] = {}  # by checkpoint and what is asked of it
        self._serving: asyncio.Task[None] | None = None
        self._answered: dict[str, Answered] = {}  # by checkpoint; under no name: for all

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
        self._waiting.setdefault((checkpoint, what), []).append((observation, answer))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answer

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
                answers = await asyncio.to_thread(_answers, policy, what, [observation for observation, _ in asked])
            except Exception as error:  # whoever asked gets the error; the server lives on
                for _, answer in asked:
                    answer.set_exception(error)
            else:
                spent = time.perf_counter() - began
                done = Answered(1, len(asked), spent) if what == "act" else Answered(imagined_s=spent)
                for name in ("", checkpoint):
                    self._answered[name] = self._answered.get(name, Answered()) + done
                for (_, answer), told in zip(asked, answers, strict=True):
                    answer.set_result(told)

    def _loaded(self, checkpoint: str) -> Any:
        from orchestrator.checkpoint_cache import UNREAD, kept
        from policy.serve import TrainedPolicy

        if checkpoint not in self._policies:
            uri, _, fingerprint = checkpoint.rpartition(FINGERPRINT)
            with tempfile.TemporaryDirectory() as folder:
                if not uri:
                    download(checkpoint, Path(folder), skip=UNREAD)
                self._policies[checkpoint] = TrainedPolicy(kept(uri, fingerprint) if uri else Path(folder), self._device, self._rung)
            while len(self._policies) > self.KEPT:
                self._policies.popitem(last=False)
        self._policies.move_to_end(checkpoint)
        return self._policies[checkpoint]


def _answers(policy: Any, what: str, observations: list[Observation]) -> Sequence[ActionChunk | Imagination | None]:
    if what == "act":
        chunks: list[ActionChunk] = policy.act(observations)
        return chunks
    imaginations: list[Imagination] = policy.imagine(observations) if policy.imagines else []
    return imaginations or [None] * len(observations)
