"""A sweep as the storage has it: which arms, how far each is, what it scored; and the table that shows it.

sweeps/<name>.json                        the resolved sweep, the data version it keeps to, and which of its episodes are quarantined
arms/<arm id>/step_000100/                checkpoints, written by Ray Train
checkpoints/<arm id>/step_000100.json     a checkpoint that is whole: its losses and fingerprint
outcomes/<checkpoint>/<protocol>/         the ledger, orchestrator/ledger.py
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.arms import Arm
from orchestrator.data.manifest import Manifest
from orchestrator.data.store import check_all, latest_version, load_manifest
from orchestrator.data.subset import Subset, SubsetError, choose
from orchestrator.ledger import Ledger
from orchestrator.provenance import SCORING_CODE, TRAINING_CODE, code_fingerprint, digest
from orchestrator.score import Score, protocol_fingerprint
from orchestrator.spec import Sweep, SweepError
from orchestrator.storage import Storage, open_storage
from orchestrator.tracking import tracking_uri
from policy.presets import policy_config


@dataclass
class ArmState:
    """How far one arm is."""

    name: str
    steps: int
    """Optimiser steps it is to make."""
    step: int = 0
    video_step: int = 0
    """Of the video model it waits for, where that is trained apart."""
    loss: float | None = None
    scoring: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Checkpoint step -> (episodes with an outcome, episodes listed)."""
    scores: dict[int, Score] = field(default_factory=dict)
    shifted: dict[str, Score] = field(default_factory=dict)
    """The last checkpoint's, by shift."""
    failure: str = ""
    """One line, if its training failed for good."""

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        if self.step < self.steps:
            return "training" if self.step else "stage 1" if self.video_step else "waiting"
        return "scored" if self.steps in self.scores else "scoring"


class Board:
    """All arms; updated from the sweep's threads, drawn by whoever looks."""

    def __init__(self, arms: dict[str, ArmState]) -> None:
        """arms: by arm id, in the order to show them."""
        self.arms = arms
        self.lock = threading.Lock()

    def table(self) -> Any:
        """A rich table: one row per arm."""
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        for title in ("arm", "state", "steps", "loss", "played", "last score"):
            table.add_column(title, no_wrap=True, justify="right" if title in ("steps", "loss", "played") else "left")
        with self.lock:
            for arm in self.arms.values():
                done, listed = (sum(counts) for counts in zip(*arm.scoring.values(), strict=True)) if arm.scoring else (0, 0)
                table.add_row(
                    arm.name,
                    arm.state,
                    f"{arm.step}/{arm.steps}",
                    "" if arm.loss is None else f"{arm.loss:.2f}",
                    f"{done}/{listed}" if listed else "",
                    str(arm.scores[max(arm.scores)]) if arm.scores else arm.failure,
                )
        return table

    def lines(self) -> list[dict[str, Any]]:
        """The same as data, for `--json`."""
        rows = []
        with self.lock:
            for arm in self.arms.values():
                scores = {
                    str(step): {"successes": s.successes, "episodes": s.episodes, "errors": s.errors, "complete": s.complete}
                    for step, s in sorted(arm.scores.items())
                }
                rows.append(
                    {
                        "arm": arm.name,
                        "state": arm.state,
                        "step": arm.step,
                        "steps": arm.steps,
                        "loss": arm.loss,
                        "scores": scores,
                        "shifted": {shift: {"successes": s.successes, "episodes": s.episodes} for shift, s in arm.shifted.items()},
                        "failure": arm.failure,
                    }
                )
        return rows


@dataclass(frozen=True)
class SweepState:
    """A sweep tied to one version of its data: what `run`, `status` and `curve` agree on."""

    sweep: Sweep
    storage: Storage
    manifest: Manifest
    version: int
    quarantined: dict[str, str]
    """Damaged episodes that no arm reads, and what is wrong with each."""

    @classmethod
    def open(cls, sweep: Sweep, pin: bool = False) -> "SweepState":
        """The data version is the newest one when the sweep first runs (`pin`), and that one ever after."""
        storage = open_storage(sweep.storage)
        key = f"sweeps/{sweep.name}.json"
        before = json.loads(storage.get(key)) if storage.exists(key) else {}
        same_data = before.get("sweep", {}).get("data", {}).get("episodes") == sweep.data.episodes
        episodes = open_storage(sweep.data.episodes)
        version = before["version"] if same_data else latest_version(episodes)
        quarantined = before.get("quarantined", {}) if same_data and sweep.data.on_corrupt == "quarantine" else {}
        state = cls(sweep, storage, load_manifest(episodes, version), version, quarantined)
        if pin:
            state.pin()
        return state

    def pin(self) -> None:
        """Write down what the sweep keeps to from now on."""
        kept = {"sweep": self.sweep.model_dump(mode="json"), "version": self.version, "quarantined": self.quarantined}
        self.storage.put(f"sweeps/{self.sweep.name}.json", json.dumps(kept, indent=1).encode())

    def without_damaged(self, on_progress: Callable[[int, int], None]) -> "SweepState":
        """The sweep after a look at every episode its arms read: those damaged are quarantined, others take their places, until all are whole.

        `on_progress` hears (episodes read, episodes to read). SweepError if too few whole ones are left.
        """
        state, whole = self, set[str]()
        while True:
            subsets = [state.subset(arm) for arm in state.sweep.grid()]
            chosen = {episode for subset in subsets for episode in (*subset.demos, *subset.action_free)}
            todo = state.manifest.select(sorted(chosen - whole))
            damaged = {}
            for done, (entry, problem) in enumerate(check_all(open_storage(state.sweep.data.episodes), todo), 1):
                on_progress(done, len(todo))
                if problem:
                    damaged[entry.episode_id] = problem
            whole |= chosen - set(damaged)
            if not damaged:
                return state
            state = replace(state, quarantined=state.quarantined | damaged)
            state.pin()

    @classmethod
    def named(cls, name: str, storage_uri: str) -> "SweepState":
        """A sweep that ran before; SweepError if none of that name did."""
        storage = open_storage(storage_uri)
        if not storage.exists(f"sweeps/{name}.json"):
            known = [key.removeprefix("sweeps/").removesuffix(".json") for key in storage.list("sweeps/")]
            raise SweepError(storage.uri, [f"no sweep named {name} ran here; " + (f"there are {', '.join(known)}" if known else "none did")])
        return cls.open(Sweep.model_validate(json.loads(storage.get(f"sweeps/{name}.json"))["sweep"]))

    @property
    def training(self) -> str:
        return self.sweep.training_fingerprint(self.manifest.fingerprint, self.quarantined, code_fingerprint(TRAINING_CODE))

    @property
    def protocol(self) -> str:
        return self.protocol_of("nominal")

    def protocol_of(self, shift: str) -> str:
        """Of how the sweep's checkpoints are scored under a shift."""
        preset = policy_config(self.sweep.policy.preset)
        sampler = preset.ladder[self.sweep.suite.rung or preset.rung]
        return protocol_fingerprint(self.sweep.to_suite(shift), self.manifest.contract, sampler, self.sweep.suite.gl)

    @property
    def simulation(self) -> str:
        """Of what every simulator must agree on, whatever it plays."""
        return digest([self.sweep.suite.gl, code_fingerprint(SCORING_CODE)])

    @property
    def tracking_uri(self) -> str:
        return tracking_uri(self.sweep.mlflow, self.storage.uri)

    def arms(self) -> dict[str, Arm]:
        """By arm id."""
        return {arm.arm_id(self.training): arm for arm in self.sweep.grid()}

    def subset(self, arm: Arm) -> Subset:
        """The arm's episodes; SweepError if the version the sweep keeps to has too few."""
        try:
            labelled = self.sweep.data.labelled_tasks
            return choose(self.manifest, arm.demo_count, arm.action_free_ratio, arm.seed, self.quarantined.keys(), labelled)
        except SubsetError as error:
            mend = "give the sweep another name to use the store as it is now"
            raise SweepError(self.sweep.name, [f"it keeps to version {self.version} of {self.sweep.data.episodes}; {error}; {mend}"]) from None

    def checkpoints(self, arm_id: str) -> dict[int, dict[str, Any]]:
        """Whole checkpoints of an arm by step: {loss, loss_video, loss_action, checkpoint (fingerprint)}."""
        prefix = f"checkpoints/{arm_id}/"
        keys = self.storage.list(prefix)
        return {int(key.removeprefix(prefix + "step_").removesuffix(".json")): json.loads(self.storage.get(key)) for key in keys}

    def uri(self, key: str) -> str:
        """Of a key of the storage, for those who open files by themselves."""
        return f"{self.storage.uri}/{key}"

    def checkpoint_uri(self, arm_id: str, step: int) -> str:
        return f"{self.uri('arms')}/{arm_id}/step_{step:06d}"

    def board(self) -> Board:
        """The state of every arm as the storage has it."""
        board = Board({arm_id: ArmState(arm.name, self.sweep.train.steps) for arm_id, arm in self.arms().items()})
        for arm_id, state in board.arms.items():
            for step, checkpoint in sorted(self.checkpoints(arm_id).items()):
                state.step, state.loss = step, checkpoint["loss"]
                score = self._recorded(checkpoint["checkpoint"], "nominal")
                state.scoring[step] = score.episodes, score.listed
                if score.complete:
                    state.scores[step] = score
                if step == self.sweep.train.steps:
                    shifted = {shift: self._recorded(checkpoint["checkpoint"], shift) for shift in self.sweep.suite.shifts}
                    state.shifted = {shift: score for shift, score in shifted.items() if score.complete}
        return board

    def _recorded(self, checkpoint: str, shift: str) -> Score:
        """A checkpoint's score under a shift as far as the ledger has it."""
        known = Ledger(self.storage, checkpoint, self.protocol_of(shift)).read()
        listed = [spec.episode_id for spec in self.sweep.to_suite(shift).episode_list()]
        return Score(tuple(known[episode] for episode in listed if episode in known), len(listed))
