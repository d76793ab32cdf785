"""The outcome ledger in the storage: outcomes, films and verdicts of episodes, and the portrait that every
simulator must match.

    outcomes/<checkpoint>/<protocol>.parquet               sealed ledger: the outcome of every listed episode
    outcomes/<checkpoint>/<protocol>/00000001.parquet      part: outcomes in recording order, errors included;
                                                           numbered in claim order
    outcomes/<checkpoint>/<protocol>/<episode id>.mp4      film of the episode
    outcomes/<checkpoint>/<protocol>/<episode id>.json     imagined against executed video of the film
                                                           (sim_workers/rollout/prediction_error.py)
    outcomes/<checkpoint>/<protocol>/decided-<rule>.json   verdict: the episodes that sufficed for a rule
                                                           (sequential_rule.py)
    portraits/<simulation>/<scene>.json

No object is overwritten. A ledger is sealed only when its whole list is played. A verdict leaves its outcomes
in parts, to which a sweep with another rule, or none, adds the missing ones.

A row is one outcome, in parts and in sealed ledgers, so that any Parquet reader reads all scores of whole
lists as one table, `outcomes/*/*.parquet`:

    checkpoint, protocol           fingerprints of the weights, and of everything else that shapes an outcome
    task, scene_seed, noise_seed, shift      the episode's line of the suite
                                             (`sim_workers.rollout.suite.EpisodeSpec`)
    result, steps, looks           success | failure | error; control steps played; policy queries
    sim_s, policy_s                seconds simulating and rendering; seconds waiting for the policy
    first_success, success_at_end  control steps until the first success, null if none; success in the last
                                   step
    message, worker                cause of an error; host/pid of the worker process
    simulated_on, acted_on         arithmetic (`sim_workers.arithmetic`) of that process, and of the one that
                                   computed the actions; empty if not recorded
    stage, start_x, start_y        furthest stage, and where the object lay at the beginning (m): see
                                   `sim_workers.rollout.staged_outcome.StagedOutcome`; null if not recorded
    episode                        episode id
    recorded                       time of recording, UTC
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from types import NoneType
from typing import Any, get_args, get_type_hints

import pyarrow as pa

from orchestrator.evaluation.sequential_rule import Verdict
from orchestrator.provenance import digest
from orchestrator.redaction import redact
from orchestrator.storage.base import NoObject, Storage, claim
from orchestrator.storage.notes import read_json_object, read_json_objects
from orchestrator.storage.tables import encode_rows, read_rows
from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.staged_outcome import StagedOutcome
from sim_workers.rollout.suite import EpisodeSpec, task_in_ids
from sim_workers.rollout.worker import Scene

# all other fields are text
_TYPES = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    int | None: pa.int64(),
    float | None: pa.float64(),
}
_SPEC, _OUTCOME, _STAGED = (
    get_type_hints(EpisodeSpec),
    {name: kind for name, kind in get_type_hints(Outcome).items() if name != "spec"},
    {name: kind for name, kind in get_type_hints(StagedOutcome).items() if name != "spec"},
)
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("checkpoint", "protocol")),
        *(
            pa.field(name, _TYPES.get(kind, pa.string()), nullable=NoneType in get_args(kind))
            for name, kind in {**_SPEC, **_STAGED}.items()
        ),
        pa.field("episode", pa.string(), nullable=False),
        pa.field("recorded", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
"""Columns of an outcome: checkpoint and protocol, the fields of its spec, its own fields, episode id and
time.
"""
LATER = {"simulated_on": "", "acted_on": "", "stage": None, "start_x": None, "start_y": None}
"""Columns that earlier versions did not write, with their values there."""
PART = re.compile(r"/(\d{8})\.parquet$")
"""Key of a numbered part. Parts of earlier versions have random names and sort first."""
READERS = 16  # parts fetched in parallel


class Ledger:
    """Outcomes of one checkpoint under one protocol. Any number of processes may record: each object is
    written once, by one process.
    """

    def __init__(self, storage: Storage, checkpoint: str, protocol: str) -> None:
        self._storage, self._of = storage, {"checkpoint": checkpoint, "protocol": protocol}
        self._prefix = f"outcomes/{checkpoint}/{protocol}/"
        self._sealed = f"outcomes/{checkpoint}/{protocol}.parquet"
        self.sealed = False
        """Whether this object has read or written the sealed ledger."""
        self._next = 0
        """Number of the next part to try; 0 before the parts were listed."""
        self._recorded: dict[str, datetime] = {}  # recording time by episode id: a sealed row keeps it

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Write the outcomes, errors included, as one new part: all of them or, if the process dies, none."""
        if not outcomes:
            return
        now = datetime.now(UTC)
        self._note((outcome, now) for outcome in outcomes)
        data = _encode([self._row(outcome, now) for outcome in outcomes])
        self._next = (
            self._next
            or max((int(found[1]) for key in self._parts() if (found := PART.search(key))), default=0) + 1
        )
        while not claim(self._storage, f"{self._prefix}{self._next:08d}.parquet", data):
            self._next += 1
        self._next += 1

    def _parts(self) -> list[str]:
        """Return the keys of the parts in claim order, which no clock decides: of several outcomes of an
        episode the first counts.
        """
        keys = [key for key in self._storage.list(self._prefix) if key.endswith(".parquet")]
        return sorted(keys, key=lambda key: (bool(PART.search(key)), key))

    def read(self) -> dict[str, Outcome]:
        """Return the finished outcomes by episode id, the first recorded one of each. Errors are left out:
        their episodes are retried.

        Raises StorageError, which names the object, if one is damaged.
        """
        try:
            tables = [_decode(self._storage, self._sealed)]
            self.sealed = True
        except NoObject:
            with ThreadPoolExecutor(READERS) as readers:
                tables = list(readers.map(lambda key: _decode(self._storage, key), self._parts()))
        rows = [row for table in tables for row in table.to_pylist() if row["result"] != "error"]
        found: dict[str, Outcome] = {}
        for row in rows:
            found.setdefault(row["episode"], _outcome(row))
        self._note((found[row["episode"]], row["recorded"]) for row in rows)
        return found

    def seal(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Write the outcomes of the whole list as one object, sorted by spec, which replaces the parts for
        all later reads, unless there is one; return the stored outcomes in the given order, which are those
        of the first process that sealed the list.

        Raises ValueError if an outcome is an error: its episode would never be retried.
        """
        own = [*outcomes]
        listed = sorted(own, key=lambda outcome: outcome.spec)
        if errors := [outcome.spec.episode_id for outcome in listed if outcome.result == "error"]:
            raise ValueError(f"no complete score: {', '.join(errors)} ended in an error")
        now = datetime.now(UTC)
        rows = [self._row(outcome, self._recorded.get(outcome.spec.episode_id, now)) for outcome in listed]
        mine, self.sealed = claim(self._storage, self._sealed, _encode(rows)), True
        if mine:
            return own
        stored = self.read()
        return [stored.get(outcome.spec.episode_id, outcome) for outcome in own]

    def table(self, outcomes: Sequence[Outcome]) -> pa.Table:
        """Return the outcomes as a table with the columns of SCHEMA; those that were not recorded get the
        current time.
        """
        now = datetime.now(UTC)
        return pa.Table.from_pylist(
            [self._row(outcome, self._recorded.get(outcome.spec.episode_id, now)) for outcome in outcomes],
            SCHEMA,
        )

    def keep_verdict(self, rule: str, verdict: Verdict) -> Verdict:
        """Write the verdict of a rule (`Rule.key`) unless there is one; return the stored verdict, which is
        the first written.
        """
        self._storage.put_if_absent(self._verdict(rule), json.dumps(asdict(verdict)).encode())
        return self.verdict(rule) or verdict

    def verdict(self, rule: str) -> Verdict | None:
        """Return the stored verdict of a rule (`Rule.key`); None if there is none."""
        try:
            return Verdict(**read_json_object(self._storage, self._verdict(rule)))
        except NoObject:
            return None

    def _verdict(self, rule: str) -> str:
        return f"{self._prefix}decided-{rule}.json"

    def _note(self, recorded: Iterable[tuple[Outcome, datetime]]) -> None:
        for outcome, when in recorded:
            if outcome.result != "error":
                self._recorded.setdefault(outcome.spec.episode_id, when)

    def _row(self, outcome: Outcome, recorded: datetime) -> dict[str, Any]:
        own = outcome.to_json()
        own["message"] = redact(own["message"]) if own["message"] else ""
        return {
            **self._of,
            **own.pop("spec"),
            **own,
            "episode": outcome.spec.episode_id,
            "recorded": recorded,
        }

    def keep_film(self, episode_id: str, film: RecordedVideo) -> None:
        """Write an episode's film. The MP4 is written last: an episode with an MP4 is not played again."""
        if film.foresight:
            self._storage.put_if_absent(f"{self._prefix}{episode_id}.json", film.foresight)
        self._storage.put_if_absent(f"{self._prefix}{episode_id}.mp4", film.mp4)

    def films(self) -> dict[str, str]:
        """Return the keys of the films by episode id."""
        keys = [key for key in self._storage.list(self._prefix) if key.endswith(".mp4")]
        return {key.rpartition("/")[2].removesuffix(".mp4"): key for key in keys}

    def film_notes(self) -> dict[str, dict[str, Any]]:
        """Return the imagined against executed video of the films by episode id; films of policies that
        imagine nothing have none.
        """
        known = {*self._storage.list(self._prefix)}
        notes = {episode: key.removesuffix(".mp4") + ".json" for episode, key in self.films().items()}
        return {
            episode: read_json_object(self._storage, key) for episode, key in notes.items() if key in known
        }


def scores(storage: Storage) -> pa.Table:
    """Return all sealed ledgers of the storage as one table with the columns of SCHEMA.

    Raises StorageError, which names the object, if one is damaged.
    """
    sealed = [key for key in storage.list("outcomes/") if key.count("/") == 2 and key.endswith(".parquet")]
    with ThreadPoolExecutor(READERS) as readers:
        return pa.concat_tables(
            [SCHEMA.empty_table(), *readers.map(lambda key: _decode(storage, key), sealed)]
        )


def _encode(rows: list[dict[str, Any]]) -> bytes:
    return encode_rows(rows, SCHEMA)


def _decode(storage: Storage, key: str) -> pa.Table:
    """Return one object's rows. Raises StorageError if it is damaged."""
    again = "its parts are still there" if key.count("/") == 2 else "its episodes will be played again"
    return read_rows(storage, key, SCHEMA, again, LATER)


def _outcome(row: dict[str, Any]) -> Outcome:
    spec = EpisodeSpec(**{field.name: row[field.name] for field in fields(EpisodeSpec)})
    if row["stage"] is None:
        return Outcome(spec, **{name: row[name] for name in _OUTCOME})
    return StagedOutcome(spec, **{name: row[name] for name in _STAGED})


class RenderReferences:
    """The first portrait of every scene (`sim_workers.envs.render_check`), which every later scoring process
    must match.
    """

    def __init__(
        self, storage: Storage, simulation: str, mixed: bool = False, processors: bool = False
    ) -> None:
        """Read the portraits of one simulation.

        simulation: fingerprint of the simulators' code and GL backend; each has portraits of its own. mixed:
        compare pixels with the first portrait of the same driver, and physics with the first of all.
        processors: compare bits with the first portrait of the same kind of processor, and that one with the
        first of all, which may differ in rounding (`render_check.rounding_apart`).
        """
        self._storage, self._prefix, self._mixed = storage, f"portraits/{simulation}/", mixed
        self._processors = processors
        self._known: dict[str, RenderFingerprint] = {}
        self.on_drawn: Callable[[str], None] = lambda driver: None
        """Called with the driver of every portrait, in the thread that puts it."""

    def get(self, scene: Scene) -> RenderFingerprint | None:
        """Return the scene's portrait; None if there is none, or if `mixed` or `processors`: driver and
        processor are unknown before the first rendering.
        """
        return None if self._mixed or self._processors else self._read(self._key(scene))

    def put(self, scene: Scene, portrait: RenderFingerprint) -> RenderFingerprint:
        """Write the scene's portrait unless there is one; return the stored portrait, which must be
        matched.
        """
        self.on_drawn(portrait.driver)
        first = self._keep(self._key(scene), portrait)
        if self._processors and first.processor != portrait.processor:
            if not portrait.rounds_like(first, pictures=not self._mixed):
                return first
            drawn = portrait.driver if self._mixed else ""
            return self._keep(self._key(scene, f"{portrait.processor}{drawn}"), portrait)
        if not self._mixed:
            return first
        own = self._keep(self._key(scene, portrait.driver), portrait)
        return replace(first, driver=own.driver, pixels=own.pixels)

    def _keep(self, key: str, portrait: RenderFingerprint) -> RenderFingerprint:
        if known := self._read(key):
            return known
        self._storage.put_if_absent(key, json.dumps(asdict(portrait), indent=1).encode())
        return self._read(key) or portrait

    def _read(self, key: str) -> RenderFingerprint | None:
        if key not in self._known and self._storage.exists(key):
            self._known[key] = RenderFingerprint.from_json(read_json_object(self._storage, key))
        return self._known.get(key)

    def all(self) -> dict[str, dict[str, str]]:
        """Return all portraits by the last part of their keys."""
        return read_json_objects(self._storage, self._prefix)

    def _key(self, scene: Scene, driver: str = "") -> str:
        world = "" if scene.shift == "nominal" else f"-{scene.shift}{scene.variant}"
        world += "" if scene.reset == "settled" else f"-{scene.reset}"
        drawn = f"-{digest(driver)}" if driver else ""
        task = task_in_ids(scene.task)
        return f"{self._prefix}{task}{world}-{digest(scene.contract.to_json())}{drawn}.json"
