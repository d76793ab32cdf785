"""Action error of a checkpoint on the held-out episodes of a sweep: what is measured, and its protocol.

`orchestrator/data/action_error.py` defines the measure.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from orchestrator.code_fingerprint import ACTION_ERROR_CODE, code_hashes
from orchestrator.data.action_error import (
    MEASURE,
    ActionError,
    ActionScale,
    action_error,
    mean_dimensions,
    mean_loss,
    walk,
)
from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.clips import ClipBatch, cut_clip
from orchestrator.data.episode_format import Episode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.fingerprints import Key
from orchestrator.infrastructure import cause_of
from orchestrator.provenance import ACTING_PACKAGES, SIMULATING_PACKAGES
from orchestrator.stats.fixed_sample import Interval, mean_interval
from orchestrator.storage.base import open_storage
from policy.config import ClipShape, SamplerConfig
from policy.interface import (
    ActionChunk,
    Contract,
    Observation,
    PolicyNeeds,
    derived_seed,
    needs_of,
)
from sim_workers.rollout.worker import one_line

ASKED_AT_ONCE = 8
"""Episodes walked in parallel by one process, so that the policy server has batches to answer."""
LOSS_CLIPS = 4
"""Clips per episode whose loss is measured, evenly spaced from its first frame."""
PACKAGES = ("av", *(name for name in ACTING_PACKAGES if name not in SIMULATING_PACKAGES), "numpy")
"""Packages whose version changes an action error: decoding, and acting; no simulator."""


@dataclass(frozen=True)
class ActionErrorBenchmark:
    """The held-out episodes of a sweep, the same for every checkpoint of every arm."""

    episodes: str
    """URI of the episode store."""
    contract: Contract
    entries: tuple[EpisodeEntry, ...]
    """Held-out episodes, without statistics."""
    scale: ActionScale
    proprio: tuple[int, ...] | None = None
    """Indices of the store's proprioceptive values that policies get; None: all."""

    @classmethod
    def of(
        cls,
        episodes: str,
        manifest: Manifest,
        held_out: Iterable[str],
        proprio: tuple[int, ...] | None = None,
    ) -> "ActionErrorBenchmark":
        """Return the test of these episodes of a store. Raises EpisodeError if none of their actions
        changes.
        """
        ids = sorted(held_out)
        scale = ActionScale.of(manifest.select(ids))
        entries = tuple(manifest.select(ids, with_stats=False))
        return cls(episodes, manifest.contract, entries, scale, proprio)

    def key(
        self,
        sampler: SamplerConfig | None,
        device: str,
        packages: Mapping[str, str],
        learner_code: Mapping[str, str] = MappingProxyType({}),
    ) -> Key:
        """Return everything except the weights that shapes an action error. It shares no fingerprint with the
        key of a success rate.

        sampler: None for an external policy. device: device class of the policy servers. packages: versions
        by name, at least those of PACKAGES. learner_code: as for `scores.protocol_key`.
        """
        parts: dict[str, Any] = {
            "measure": MEASURE,
            "episodes": [[entry.episode_id, entry.sha256] for entry in self.entries],
            "scale": asdict(self.scale),
            "contract": self.contract.to_json(),
            "sampler": sampler and sampler.model_dump(mode="json"),
            "loss clips": LOSS_CLIPS,
            "device": device,
            "packages": {name: packages[name] for name in PACKAGES},
            "code": code_hashes(ACTION_ERROR_CODE),
        }
        if self.proprio is not None:
            parts["proprioception"] = list(self.proprio)
        if learner_code:
            parts["learner_code"] = dict(learner_code)
        return Key("action error", parts)

    def measure(self, client: Any) -> list["Measured"]:
        """Return one result per episode, ASKED_AT_ONCE at a time: each depends on its own episode only.
        client: a `PolicyClient`, which may also have `loss` and `clip` as `RayPolicyClient` has.

        Raises the error of a failed infrastructure; any other error is the result of its episode.
        """
        shape: ClipShape | None = client.clip() if hasattr(client, "clip") else None
        needs = needs_of(client)
        with ThreadPoolExecutor(ASKED_AT_ONCE) as asking:
            return list(asking.map(lambda entry: self._measured(client, needs, shape, entry), self.entries))

    def _measured(
        self, client: Any, needs: PolicyNeeds, shape: ClipShape | None, entry: EpisodeEntry
    ) -> "Measured":
        try:
            episode = decode_entry(fetch(open_storage(self.episodes), entry), entry, self.contract, True)
            if self.proprio is not None and episode.proprio is not None:
                episode = replace(episode, proprio=episode.proprio[:, list(self.proprio)])
            waited = 0.0

            def act(observation: Observation) -> ActionChunk:
                nonlocal waited
                began = time.perf_counter()
                chunk: ActionChunk = client.act(observation)
                waited += time.perf_counter() - began
                return chunk

            walked = walk(episode, entry, act, needs)
            loss = client.loss(*self._clips(episode, entry, shape)) if shape else None
            return Measured(entry.episode_id, action_error(entry, episode, walked, self.scale, loss, waited))
        except Exception as error:
            if cause_of(error):
                raise
            return Measured(entry.episode_id, None, one_line(error))

    def _clips(self, episode: Episode, entry: EpisodeEntry, shape: ClipShape) -> tuple[ClipBatch, int]:
        """Return the clips whose loss is measured, and the seed of their noise."""
        starts = sorted({i * episode.length // LOSS_CLIPS for i in range(LOSS_CLIPS)})
        clips = ClipBatch.stack([cut_clip(episode, start, shape, self.contract) for start in starts])
        return clips, derived_seed(int(entry.sha256[:12], 16))


@dataclass(frozen=True)
class Measured:
    """Result of one held-out episode."""

    episode: str
    """Episode id."""
    error: ActionError | None
    """None if the episode could not be measured."""
    message: str = ""
    """Why it could not, one sentence; empty otherwise."""


@dataclass(frozen=True)
class ActionErrorScore:
    """Action error of a checkpoint over the held-out episodes. Lower is better. Complete when every episode
    is measured.
    """

    errors: tuple[ActionError, ...]
    """Measured episodes, sorted by id."""
    listed: int
    """Number of held-out episodes."""
    causes: tuple[tuple[str, str], ...] = ()
    """Episode id and message of every episode that could not be measured."""

    @classmethod
    def of(
        cls, errors: Iterable[ActionError], listed: int, causes: Mapping[str, str] | None = None
    ) -> "ActionErrorScore":
        """Return the score of measured episodes. causes: messages of the others by episode id."""
        return cls(
            tuple(sorted(errors, key=lambda error: error.episode)),
            listed,
            tuple(sorted((causes or {}).items())),
        )

    @property
    def episodes(self) -> int:
        """Number of measured episodes: the denominator."""
        return len(self.errors)

    @property
    def complete(self) -> bool:
        """Whether every held-out episode is measured."""
        return self.episodes == self.listed

    @property
    def mean(self) -> float:
        """Mean over episodes; nan without episodes."""
        return sum(error.error for error in self.errors) / self.episodes if self.errors else float("nan")

    @property
    def interval(self) -> Interval:
        """95 % interval of the mean, Student's t over episodes."""
        return mean_interval([error.error for error in self.errors])

    @property
    def merit(self) -> float:
        """Number by which a search ranks checkpoints, higher is better: minus the interval's upper bound."""
        return -self.interval.high

    @property
    def constant(self) -> float:
        """Mean error of the constant action; nan without episodes."""
        return sum(error.constant for error in self.errors) / self.episodes if self.errors else float("nan")

    @property
    def loss(self) -> float | None:
        """Mean loss of the policy's actions; None for a policy without one."""
        return mean_loss(self.errors)

    @property
    def dimensions(self) -> tuple[float | None, ...]:
        """Mean error per action dimension; None for a dimension without unit."""
        return mean_dimensions(self.errors)

    def __str__(self) -> str:
        low, high = self.interval
        loss = "" if self.loss is None else f", loss {self.loss:.3g}"
        failed = f", {len(self.causes)} could not be measured" if self.causes else ""
        partial = "" if self.complete else f" (PARTIAL: {self.listed} held out)"
        return (
            f"action error {self.mean:.3f} [{low:.3f}, {high:.3f}] on {self.episodes} held-out episodes, a"
            f" constant action {self.constant:.3f}{loss}{failed}{partial}"
        )
