"""Removal of checkpoints that nothing needs any more: while a sweep runs (`train.keep`) and afterwards
(`demoscale gc`).

Scores, records of checkpoints and everything else stay. A checkpoint stays if training may resume from it, if
a score or a generated video of it is to be measured, if it is the arm's last one, which `demoscale score`,
`serve` and reports name, if a registered model of MLflow was made of it, or if another sweep of the storage
needs it. Weights that a storage keeps once (`policy/checkpoint_files.py`) go with the last checkpoint that
refers to them.
"""

import re
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from orchestrator.checkpoints.record import read_records
from orchestrator.config.schema import ALL, BEST, LAST
from orchestrator.cost import size
from orchestrator.storage.base import Storage
from orchestrator.storage.identity import sweep_names
from orchestrator.sweep.driver_lease import HeldError, Lease
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import ArmStatus, SweepStatus
from orchestrator.tracking.mlflow_reader import registered_checkpoints
from policy.checkpoint_files import FROZEN_CARD, FROZEN_FOLDER, read_frozen_card
from policy.errors import DemoscaleError
from sim_workers.rollout.worker import one_line

STEP = re.compile(r"step_(\d+)/")
WHILE_TRAINING = 2
"""Newest checkpoints of an unfinished run that stay: if a full disk damages the newest, the run resumes from
the one before.
"""


UNREADABLE = (DemoscaleError, LookupError, TypeError, ValueError)
"""Errors of a sweep whose file is damaged or whose data cannot be read."""


class UnknownNeedsError(DemoscaleError):
    """Error if it is not known what a sweep of the storage needs: one sentence that names it and the fix."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """Files of one checkpoint in a storage."""

    run: str
    """Id of the arm, or of the training run of a video model."""
    step: int
    keys: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class Removable:
    """Something that nothing needs."""

    place: str
    """Key prefix in the storage."""
    what: str
    """Arm and step in words."""
    nbytes: int
    keys: tuple[str, ...]
    checkpoint: StoredCheckpoint | None = None
    """None for weights that checkpoints share."""


@dataclass(frozen=True)
class GarbagePlan:
    """What a storage can be relieved of."""

    removable: tuple[Removable, ...]
    kept: int
    """Number of checkpoints of the sweep that stay."""
    kept_bytes: int
    notes: tuple[str, ...] = ()
    """What was left out, and why, one sentence each."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything removable."""
        return sum(one.nbytes for one in self.removable)

    def to_json(self) -> dict[str, Any]:
        """Return the object of `gc --json`."""
        items = [{"place": one.place, "what": one.what, "bytes": one.nbytes} for one in self.removable]
        return {
            "removable": items,
            "bytes": self.nbytes,
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = [f"{size(one.nbytes):>11}  {one.place}  {one.what}" for one in self.removable]
        stay = f"{self.kept} checkpoints of {size(self.kept_bytes)} stay"
        return "\n".join([*rows, f"{size(self.nbytes):>11}  in {len(rows)} items; {stay}", *self.notes])


def stored_checkpoints(storage: Storage, run: str) -> dict[int, StoredCheckpoint]:
    """Return the checkpoints of a training run in the storage, recorded or not, by step."""
    prefix, found = f"arms/{run}/", dict[int, dict[str, int]]()
    for key, nbytes in storage.sizes(prefix).items():
        if step := STEP.match(key, len(prefix)):
            found.setdefault(int(step[1]), {})[key] = nbytes
    return {
        step: StoredCheckpoint(run, step, tuple(files), sum(files.values()))
        for step, files in sorted(found.items())
    }


def needed_steps(
    state: SweepState, arm_id: str, arm: ArmStatus, keep: str, there: Collection[int]
) -> frozenset[int]:
    """Return the steps of an arm whose checkpoints stay, besides those of registered models.

    arm: its progress. keep: as `train.keep`. there: steps with files in the storage.
    """
    if keep == ALL:
        return frozenset(there)
    scheduled, scored = state.sweep.checkpoint_steps(arm.arm), state.sweep.scored_steps(arm.arm)
    newest = sorted(there)[-(WHILE_TRAINING if arm.step < arm.steps else 1) :]
    stay = {*newest, arm.steps}
    whole = {step for step, score in arm.scores.items() if score.complete}
    if arm.stopped is None:  # else the scorer drops what it has not played
        stay |= {step for step in scored if step not in whole}
    if arm.choosing and arm.stopped is None:  # the best is chosen among all, and then scored once more
        stay |= set(there) if arm.best is None else {arm.best}
    if keep == BEST and whole:
        stay.add(max(whole, key=lambda step: (arm.scores[step].merit, step)))
    if every := re.fullmatch(r"every (\d+)", keep):
        stay |= set(scheduled[int(every[1]) - 1 :: int(every[1])])
    if test := state.possible_video_test(arm.arm):
        stay |= {
            step
            for step, record in state.checkpoints(arm_id).items()
            if step in whole and test.known(state.storage, record.fingerprint) is None
        }
    return frozenset(stay)


def _needed_of_stage_one(last: int, keep: str, there: Collection[int]) -> frozenset[int]:
    """Return the steps of a video model whose checkpoints stay. last: of its training."""
    if keep == ALL:
        return frozenset(there)
    return frozenset(sorted(there)[-(1 if last in there else WHILE_TRAINING) :])


def _of_sweep(
    state: SweepState, board: SweepStatus, keep: str = ""
) -> Iterator[tuple[str, str, dict[int, StoredCheckpoint], frozenset[int]]]:
    """Yield id, name, stored checkpoints and needed steps of every training run of a sweep. keep: empty for
    that of the sweep file.
    """
    seen = set[str]()
    for arm_id, arm in board.arms.items():
        there = stored_checkpoints(state.storage, arm_id)
        policy = keep or state.sweep.train_of(arm.arm).keep
        yield arm_id, arm.name, there, needed_steps(state, arm_id, arm, policy, there)
        if not (video := state.stage_one(arm.arm)) or video.arm_id in seen:
            continue
        seen.add(video.arm_id)
        there = stored_checkpoints(state.storage, video.arm_id)
        stay = _needed_of_stage_one(video.train.steps, policy, there)
        yield video.arm_id, "a video model", there, stay


def plan_removal(name: str, storage_uri: str, keep: str = "") -> GarbagePlan:
    """Return what the sweep `name` no longer needs; changes nothing.

    keep: as `train.keep`; empty: what the sweep file says, `last` if it says nothing. Raises SweepError if
    there is no such sweep, UnknownNeedsError if another sweep of the storage cannot be read, TrackingError
    if MLflow does not tell which models are registered.
    """
    state = SweepState.named(name, storage_uri)
    others = _needs_of_others(state.storage, name)
    policy = keep or ("" if state.sweep.train.keep != ALL else LAST)
    registered = registered_checkpoints(state.tracking_uri)
    removable, kept = list[Removable](), list[StoredCheckpoint]()
    for run, called, there, stay in _of_sweep(state, state.board(), policy):
        records = read_records(state.storage, run)
        for step, checkpoint in there.items():
            record = records.get(step)
            if step in stay | others.get(run, frozenset()) or (record and record.fingerprint in registered):
                kept.append(checkpoint)
            else:
                what = f"{called}, step {step}"
                place = f"arms/{run}/step_{step:06d}/"
                removable.append(Removable(place, what, checkpoint.nbytes, checkpoint.keys, checkpoint))
    removable += _unreferenced(state.storage, {one.place for one in removable})
    return GarbagePlan(tuple(removable), len(kept), sum(one.nbytes for one in kept))


def _needs_of_others(storage: Storage, name: str) -> dict[str, frozenset[int]]:
    """Return the steps that the other sweeps of a storage need, by training run."""
    needs = dict[str, frozenset[int]]()
    for other in sweep_names(storage):
        if other == name:
            continue
        try:
            state = SweepState.named(other, storage.uri)
            for run, _, _, stay in _of_sweep(state, state.board()):
                needs[run] = needs.get(run, frozenset()) | stay
        except UNREADABLE as error:
            raise _unknown(storage, other, error) from None
    return needs


def _runs_of_others(storage: Storage, name: str) -> frozenset[str]:
    """Return the training runs of the other sweeps of a storage."""
    runs = set[str]()
    for other in sweep_names(storage):
        if other == name:
            continue
        try:
            state = SweepState.named(other, storage.uri)
            for arm_id, arm in state.arms().items():
                video = state.stage_one(arm)
                runs |= {arm_id, video.arm_id if video else arm_id}
        except UNREADABLE as error:
            raise _unknown(storage, other, error) from None
    return frozenset(runs)


def _unknown(storage: Storage, sweep: str, error: Exception) -> UnknownNeedsError:
    return UnknownNeedsError(
        f"{storage.uri}: the sweep {sweep} in this storage cannot be read ({one_line(error)}), so it is"
        f" not known which checkpoints it needs; restore what it lacks, or remove sweeps/{sweep}.json if it"
        " is no longer wanted"
    )


def _unreferenced(storage: Storage, going: Collection[str]) -> Iterator[Removable]:
    """Yield the shared weights that no checkpoint refers to but those of the key prefixes `going`."""
    if not (shared := storage.sizes(f"{FROZEN_FOLDER}/")):
        return
    needed = set[str]()
    for key in storage.list("arms/"):
        folder, _, file = key.rpartition("/")
        if file == FROZEN_CARD and f"{folder}/" not in going:
            needed |= {one.key for one in read_frozen_card(storage.get(key), folder).values()}
    for key, nbytes in shared.items():
        if key not in needed:
            yield Removable(key, "weights that no other checkpoint refers to", nbytes, (key,))


def remove(state: SweepState, one: Removable) -> None:
    """Remove an item, and record it first if it is a checkpoint. Raises StorageError."""
    if one.checkpoint:
        state.record_removal(one.checkpoint.run, one.checkpoint.step)
    for key in one.keys:
        state.storage.delete(key)


def collect_garbage(name: str, storage_uri: str, keep: str, say: Callable[[str], None]) -> GarbagePlan:
    """Remove what the sweep `name` no longer needs, and return it; arguments and errors are those of
    `plan_removal`. Raises HeldError if a driver runs the sweep.

    Weights that checkpoints share stay while another sweep of the storage runs, which may be about to refer
    to them.
    """
    state = SweepState.named(name, storage_uri)
    storage = state.storage
    with ExitStack() as held:
        held.enter_context(Lease(storage, name, lambda _: None).claim(say))
        running = list[str]()
        for other in sweep_names(storage):
            try:
                if other != name:
                    held.enter_context(Lease(storage, other, lambda _: None).claim(say))
            except HeldError:
                running.append(other)
        plan = plan_removal(name, storage_uri, keep)
        if running:
            plan = GarbagePlan(
                tuple(one for one in plan.removable if one.checkpoint),
                plan.kept,
                plan.kept_bytes,
                (f"weights that checkpoints share stay while {', '.join(running)} runs",),
            )
        for one in plan.removable:
            remove(state, one)
        return plan


class CheckpointPruner:
    """Removes the checkpoints of a running sweep that `train.keep` does not name, in a thread of its own.

    Arms that another sweep of the storage trains or scores, too, are left to `demoscale gc`, and so are
    weights that checkpoints share. A storage or an MLflow that does not answer costs a sentence, and the next
    checkpoint is another occasion.
    """

    def __init__(
        self,
        state: SweepState,
        board: SweepStatus,
        say: Callable[[str], None],
        registered: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        """Start no thread yet. registered: returns the fingerprints of registered models' checkpoints; None:
        of the sweep's MLflow.
        """
        self._state, self._board, self._say = state, board, say
        self._registered = registered or partial(registered_checkpoints, state.tracking_uri)
        self._said, self._lock = set[str](), threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def look(self, arm_id: str) -> None:
        """Remove what the arm, or the video model that its head reads, no longer needs, soon."""
        arm = self._board.arms[arm_id]
        if self._state.sweep.train_of(arm.arm).keep == ALL:
            return
        with self._lock:
            if self._closed:
                return
            self._thread = self._thread or ThreadPoolExecutor(1, "checkpoints")
            self._thread.submit(self._prune, arm_id)

    def close(self) -> None:
        """Wait until everything is removed that was asked for; later requests do nothing."""
        with self._lock:
            self._closed = True
        if self._thread:
            self._thread.shutdown()

    def _prune(self, arm_id: str) -> None:
        try:
            self._remove_unneeded(arm_id)
        except Exception as error:  # disk space is no reason to end a sweep
            if (why := one_line(error)) not in self._said:
                self._said.add(why)
                self._say(f"checkpoints of {self._board.arms[arm_id].name} stay for now: {why}")

    def _remove_unneeded(self, arm_id: str) -> None:
        state, status = self._state, self._board.arms[arm_id]
        keep = state.sweep.train_of(status.arm).keep
        there = stored_checkpoints(state.storage, arm_id)
        with self._board.lock:
            arm = replace(status, scores=dict(status.scores))
        runs = [(arm_id, there, needed_steps(state, arm_id, arm, keep, there))]
        if arm.step and (video := state.stage_one(arm.arm)):
            there = stored_checkpoints(state.storage, video.arm_id)
            runs.append((video.arm_id, there, _needed_of_stage_one(video.train.steps, keep, there)))
        if all(there.keys() <= stay for _, there, stay in runs):
            return
        # asked each time: another sweep may have begun, or a model may have been registered
        shared, registered = _runs_of_others(state.storage, state.sweep.name), self._registered()
        for run, there, stay in runs:
            if run in shared:
                continue
            records = read_records(state.storage, run)
            for step in sorted(there.keys() - stay):
                if (record := records.get(step)) and record.fingerprint in registered:
                    continue
                one = there[step]
                remove(state, Removable("", "", one.nbytes, one.keys, one))
                if run == arm_id and record:
                    with self._board.lock:
                        status.removed.add(step)
