"""Checkpoint -> policy server + rollout pool -> Score, and the ledger of episode outcomes that makes it resumable."""

import asyncio
import json
import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.provenance import SCORING_CODE, code_fingerprint, digest
from orchestrator.stats import wilson
from orchestrator.storage import Storage, download
from policy.config import SamplerConfig
from policy.interface import ActionChunk, Contract, Imagination, Observation
from sim_workers.env import contract as contract_of_env
from sim_workers.rollout import Outcome
from sim_workers.suite import Suite


class ProtocolError(Exception):
    """One sentence: the policy and the simulator disagree about a convention."""


@dataclass(frozen=True)
class Score:
    """Successes out of the suite's episodes. Complete only when every listed episode ended in success or failure."""

    outcomes: tuple[Outcome, ...]
    listed: int
    """Episodes in the suite."""

    @property
    def successes(self) -> int:
        return sum(outcome.result == "success" for outcome in self.outcomes)

    @property
    def errors(self) -> int:
        return sum(outcome.result == "error" for outcome in self.outcomes)

    @property
    def episodes(self) -> int:
        """Episodes that say something about the policy: the denominator."""
        return len(self.outcomes) - self.errors

    @property
    def complete(self) -> bool:
        return self.episodes == self.listed

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        errors = f", {self.errors} errors" if self.errors else ""
        partial = "" if self.complete else f" (PARTIAL: {self.listed} listed)"
        return f"{self.successes}/{self.episodes} = {self.success_rate:.2f} [{low:.2f}, {high:.2f}]{errors}{partial}"


def protocol_fingerprint(suite: Suite, contract: Contract, sampler: SamplerConfig) -> str:
    """Of everything besides the weights that shapes an outcome: episodes, rules, conventions, how looks become actions, simulator and its code."""
    return digest([suite.fingerprint(), contract.to_json(), sampler.model_dump(mode="json"), code_fingerprint(SCORING_CODE)])


def check_contract(policy: Contract) -> None:
    """ProtocolError if the simulator of this machine cannot give the policy what it was trained on."""
    offered = contract_of_env(policy.cameras, policy.image_size, policy.render_profile)
    if different := policy.mismatches(offered):
        raise ProtocolError("the policy cannot be scored here. " + "; ".join(different))


class Ledger:
    """The outcomes of one checkpoint under one protocol: an object per finished episode, written once."""

    def __init__(self, storage: Storage, checkpoint: str, protocol: str) -> None:
        self._storage = storage
        self._prefix = f"outcomes/{checkpoint}/{protocol}/"

    def read(self) -> dict[str, Outcome]:
        """Finished episodes by id. Errors are not among them: they are tried again."""
        keys = self._storage.list(self._prefix)
        outcomes = (Outcome.from_json(json.loads(self._storage.get(key))) for key in keys if key.endswith(".json"))
        return {outcome.spec.episode_id: outcome for outcome in outcomes}

    def record(self, outcome: Outcome, film: bytes | None) -> None:
        """Keep a success or failure for good; the film beside it."""
        if outcome.result == "error":
            return
        if film:
            self._storage.put_if_absent(f"{self._prefix}{outcome.spec.episode_id}.mp4", film)
        self._storage.put_if_absent(f"{self._prefix}{outcome.spec.episode_id}.json", json.dumps(outcome.to_json()).encode())

    def films(self) -> list[str]:
        """Keys of the recorded episodes' videos."""
        return [key for key in self._storage.list(self._prefix) if key.endswith(".mp4")]


class PolicyServer:
    """Checkpoints in memory, asked by many simulators at once (a Ray actor).

    What arrives while a batch is computed forms the next one, so nobody waits for a timer and the batch fills itself under load.
    """

    KEPT = 2  # policies kept loaded: the one that finishes and the one that begins

    def __init__(self, num_threads: int, device: str, rung: str = "") -> None:
        """rung: of the policies' ladder, on which all of them act."""
        import torch

        torch.set_num_threads(num_threads)
        self._device, self._rung = device, rung
        self._policies: OrderedDict[str, Any] = OrderedDict()
        self._waiting: dict[tuple[str, str], list[tuple[Observation, asyncio.Future[Any]]]] = {}  # by checkpoint and what is asked of it
        self._serving: asyncio.Task[None] | None = None

    async def act(self, checkpoint: str, observation: Observation) -> ActionChunk:
        """The chunk that the policy of the checkpoint (a URI) answers."""
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

    async def _serve(self) -> None:
        while self._waiting:
            checkpoint, what = next(iter(self._waiting))
            asked = self._waiting.pop((checkpoint, what))
            try:
                answers = await asyncio.to_thread(self._answer, checkpoint, what, [observation for observation, _ in asked])
            except Exception as error:  # whoever asked gets the error; the server lives on
                for _, answer in asked:
                    answer.set_exception(error)
            else:
                for (_, answer), told in zip(asked, answers, strict=True):
                    answer.set_result(told)

    def _answer(self, checkpoint: str, what: str, observations: list[Observation]) -> Sequence[ActionChunk | Imagination | None]:
        from policy.serve import TrainedPolicy

        if checkpoint not in self._policies:
            with tempfile.TemporaryDirectory() as folder:
                download(checkpoint, Path(folder), skip=("trainer.safetensors",))
                self._policies[checkpoint] = TrainedPolicy(Path(folder), self._device, self._rung)
            while len(self._policies) > self.KEPT:
                self._policies.popitem(last=False)
        self._policies.move_to_end(checkpoint)
        policy: TrainedPolicy = self._policies[checkpoint]
        if what == "act":
            return policy.act(observations)
        return policy.imagine(observations) if policy.imagines else [None] * len(observations)


@dataclass(frozen=True)
class ScoringJob:
    """One checkpoint to score."""

    arm_id: str
    step: int
    uri: str
    fingerprint: str
    film_episodes: int = 0
    """How many of the suite's episodes to film."""


@dataclass
class _Open:
    job: ScoringJob
    ledger: Ledger
    outcomes: dict[str, Outcome]
    missing: set[str] = field(default_factory=set)


class Scorer:
    """Scores checkpoints in a thread of its own, so that training never waits. Finished episodes are never played again.

    on_progress(job, done, listed) and on_score(job, score) are called from that thread.
    """

    def __init__(
        self,
        storage: Storage,
        suite: Suite,
        contract: Contract,
        pool: Any,
        server: Any,
        on_progress: Callable[[ScoringJob, int, int], None],
        on_score: Callable[[ScoringJob, Score], None],
        protocol: str,
    ) -> None:
        check_contract(contract)
        self._storage, self._suite, self._contract, self._pool, self._server = storage, suite, contract, pool, server
        self._on_progress, self._on_score = on_progress, on_score
        self._protocol = protocol
        self._jobs: queue.Queue[ScoringJob | None] = queue.Queue()
        self._open: dict[str, _Open] = {}  # by checkpoint URI
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, job: ScoringJob) -> None:
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until everything submitted is scored; raises what went wrong in the thread."""
        self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(0.5)
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Stop at once; what was not finished is found missing by the next run."""
        self._closing = True
        self._thread.join(5)
        self._pool.close()

    def _run(self) -> None:
        try:
            accepting = True
            while (accepting or self._pool.unfinished) and not self._closing:
                block = not self._pool.unfinished
                try:
                    while True:
                        job = self._jobs.get(timeout=0.5 if block else 0)
                        block = False
                        if job is None:
                            accepting = False
                        else:
                            self._begin(job)
                except queue.Empty:
                    pass
                for rollout, outcome, film in self._pool.results(timeout_s=0.2):
                    self._finish(rollout.policy, outcome, film)
                    if self._closing or not self._jobs.empty():
                        break
        except BaseException as error:
            self._failure = error

    def _begin(self, job: ScoringJob) -> None:
        from sim_workers.pool import RolloutJob

        if job.uri in self._open:
            return
        ledger = Ledger(self._storage, job.fingerprint, self._protocol)
        specs = self._suite.episode_list()
        known = ledger.read()
        entry = _Open(job, ledger, {spec.episode_id: known[spec.episode_id] for spec in specs if spec.episode_id in known})
        filmed = {spec.episode_id for spec in specs[: job.film_episodes]}
        entry.missing = {spec.episode_id for spec in specs} - entry.outcomes.keys()
        self._open[job.uri] = entry
        for spec in specs:
            if spec.episode_id in entry.missing:
                self._pool.submit(RolloutJob(spec, self._suite.rules, self._contract, self._server, job.uri, film=spec.episode_id in filmed))
        self._report(entry)

    def _finish(self, uri: str, outcome: Outcome, film: bytes | None) -> None:
        entry = self._open[uri]
        entry.missing.remove(outcome.spec.episode_id)
        entry.outcomes[outcome.spec.episode_id] = outcome
        entry.ledger.record(outcome, film)
        self._report(entry)

    def _report(self, entry: _Open) -> None:
        listed = len(entry.missing) + len(entry.outcomes)
        self._on_progress(entry.job, len(entry.outcomes), listed)
        if not entry.missing:
            del self._open[entry.job.uri]
            self._on_score(entry.job, Score(tuple(entry.outcomes.values()), listed))
