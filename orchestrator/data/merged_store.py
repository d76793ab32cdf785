"""Parts of several episode stores as one: filters, names, views.

A merged store is a manifest whose rows name objects of other stores; it holds no episode itself. Its first
part whose actions are used gives the contract. Parts with equal contracts give demos and action-free
episodes. A part that is `action_free_only` may have other cameras, picture sizes, robots and actions, of
which only the pictures are read: each of the contract's cameras shows one of the part's, scaled to the
contract's size.

Episode ids are NAME:ID, NAME being the last part of the store's URI, made unambiguous.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import fetchable, latest_version, load_manifest, publish
from orchestrator.data.manifest import SCHEMA, SEPARATOR, Manifest, MergedPart
from orchestrator.data.store_summary import grouped, nearest
from orchestrator.storage.base import Storage, StorageError, open_storage
from policy.errors import DemoscaleError
from policy.interface import Contract

NAMED = 3  # examples in a message


class MergeError(DemoscaleError):
    """Error of parts that cannot be merged: one sentence per mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(problems))


@dataclass(frozen=True)
class StorePart:
    """Part of an episode store."""

    store: str
    """URI of the store."""
    tasks: tuple[str, ...] = ()
    """Tasks to keep; all if empty."""
    source: tuple[str, ...] = ()
    """Texts of which an episode's source must contain one; all episodes if empty."""
    success: bool | None = None
    """Keep the episodes that achieved their task, or those that did not; None: both, and unknown ones."""
    quality: str = ""
    """File of episode ids to keep, or of findings whose episodes are left out; empty: all episodes."""
    weight: float | None = None
    """Share of clips relative to the other parts; None: by the number of frames."""
    action_free_only: bool = False
    """Whether only pictures are used."""
    cameras: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Pairs (the store's camera, the cameras that show its pictures); empty: the names are equal."""
    video_kind: str = ""
    """Kind of videos, which only lines that name it learn from; empty: the part serves every line."""

    @property
    def filters(self) -> dict[str, Any]:
        """The fields that choose episodes, JSON-safe."""
        others = ("store", "weight", "video_kind")
        chosen = {name: value for name, value in asdict(self).items() if name not in others}
        return json.loads(json.dumps(chosen))  # type: ignore[no-any-return]


def merge(parts: Sequence[StorePart]) -> Manifest:
    """Return the manifest of the parts of the newest versions of these stores. Raises MergeError with one
    sentence per mistake, each beginning with the number of its part from 0.
    """
    opened, problems = list[_Opened](), list[str]()
    for number, (name, part) in enumerate(zip(_names([part.store for part in parts]), parts, strict=True)):
        try:
            storage = open_storage(part.store)
            version = latest_version(storage)
            opened.append(_Opened(name, part, storage.uri, version, load_manifest(storage, version)))
        except (EpisodeError, StorageError) as error:
            problems.append(f"{number}: {error}")
    if problems:
        raise MergeError(problems)
    ours = next((one.manifest.contract for one in opened if not one.part.action_free_only), None)
    if ours is None:
        raise MergeError(["0: every part is action_free_only, so that there is no demo; leave it out of one"])
    weighted = [part.weight is not None for part in parts]
    if any(weighted) and not all(weighted):
        raise MergeError([f"{weighted.index(False)}.weight: missing; give every part a weight, or none"])
    tables = list[pa.Table]()
    for number, one in enumerate(opened):
        rows, wrong = _rows(one, ours)
        problems += [f"{number}{sentence}" for sentence in wrong]
        tables.append(rows)
    if problems := problems or [*_twice(tables)]:
        raise MergeError(problems)
    demonstrated = set[str]().union(
        *(
            table["task"].to_pylist()
            for one, table in zip(opened, tables, strict=True)
            if not one.part.action_free_only
        )
    )
    merged = pa.concat_tables(tables).unify_dictionaries()
    facts = [one.facts(len(table)) for one, table in zip(opened, tables, strict=True)]
    return Manifest.of_table(ours, merged, facts, sorted(set(merged["task"].to_pylist()) - demonstrated))


@dataclass(frozen=True)
class _Opened:
    """Part of a store, with its newest version."""

    name: str
    part: StorePart
    uri: str
    version: int
    manifest: Manifest

    def facts(self, episodes: int) -> MergedPart:
        """Return what the merged manifest keeps about the part. episodes: number that its filters leave."""
        return MergedPart(
            name=self.name,
            store=self.uri,
            version=self.version,
            fingerprint=self.manifest.fingerprint,
            filters=self.part.filters,
            weight=self.part.weight,
            episodes=episodes,
            of=len(self.manifest),
            video_kind=self.part.video_kind,
        )


def _rows(one: _Opened, ours: Contract) -> tuple[pa.Table, list[str]]:
    """Return the rows of a part under a contract, and what is wrong with the part: `.FIELD: SENTENCE`."""
    wrong = [f".{sentence}" for sentence in _wrong_contract(one.part, ours, one.manifest.contract)]
    kept = np.ones(len(one.manifest), bool)
    for field, own in _filters(one.part, one.manifest):
        if isinstance(own, str):
            wrong.append(f".{field}: {own}")
        else:
            kept &= own
    if not wrong and not kept.any():
        wrong.append(f": no episode of {one.part.store} is left of {len(one.manifest)}; widen its filters")
    if wrong:
        return SCHEMA.empty_table(), wrong
    rows = one.manifest.table.filter(pa.array(kept))
    return _renamed(rows, one.name, one.part, ours, one.uri), []


def _twice(tables: Sequence[pa.Table]) -> Iterator[str]:
    """Yield one sentence per part with episodes of an earlier one: an episode could be demo and action-free,
    or trained on and held out.
    """
    owner: dict[str, int] = {}
    for number, table in enumerate(tables):
        ids, contents = table["episode_id"].to_pylist(), table["sha256"].to_pylist()
        again = [episode for episode, sha256 in zip(ids, contents, strict=True) if sha256 in owner]
        if again:
            other = next(owner[sha256] for sha256 in contents if sha256 in owner)
            yield (
                f"{number}: {len(again)} of its episodes are also in part {other}, such as {again[0]}; an"
                " episode may be in one part only: filter them out of the other"
            )
        owner |= {sha256: number for sha256 in contents if sha256 not in owner}


# -- the merged store in a storage ---------------------------------------------------------------------------


def merged_uri(storage: Storage, manifest: Manifest) -> str:
    """Return the URI at which `publish_merged` writes a merged manifest."""
    return f"{storage.uri}/merged/{manifest.sha256[:16]}"


def publish_merged(storage: Storage, manifest: Manifest) -> str:
    """Write a merged manifest as version 1 of a store below `storage`, from which workers read it; return
    that store's URI.
    """
    uri = merged_uri(storage, manifest)
    publish(open_storage(uri), manifest, 1, len(manifest), "parts of several stores")
    return uri


# -- parts ---------------------------------------------------------------------------------------------------


def _names(stores: Sequence[str]) -> list[str]:
    """Return a name per store, its last part, with a number where several have the same."""
    plain = [store.rstrip("/").rpartition("/")[2].replace(SEPARATOR, "_") or "store" for store in stores]
    seen, names = Counter[str](), list[str]()
    for name in plain:
        seen[name] += 1
        names.append(name if plain.count(name) == 1 else f"{name}-{seen[name]}")
    return names


def _wrong_contract(part: StorePart, ours: Contract, theirs: Contract) -> Iterator[str]:
    """Yield one sentence per convention that hinders merging."""
    mine, own = ours.to_json(), theirs.to_json()
    if not part.action_free_only:
        if part.cameras:
            yield "cameras: only a part that is action_free_only may have other cameras than the demos"
        for field, value in mine.items():
            if json.dumps(value) != json.dumps(own.get(field)):
                yield (
                    f"store: {part.store} was recorded with another {field.replace('_', ' ')} than the first"
                    f" part: {_shown(own.get(field))} and not {_shown(value)}; mark it action_free_only, or"
                    " leave it out"
                )
        return
    if theirs.control_hz != ours.control_hz:
        yield (
            f"store: its recordings have {theirs.control_hz:g} steps per second, the demos"
            f" {ours.control_hz:g}; import them with --resample-hz {ours.control_hz:g}"
        )
    shown = [camera for _, cameras in _views(part, ours, theirs) for camera in cameras]
    for camera, cameras in part.cameras:
        if camera not in theirs.cameras:
            yield f"cameras: the store has no camera {camera}; {_near(camera, theirs.cameras)}"
        for one in cameras:
            if one not in ours.cameras:
                yield f"cameras: the demos have no camera {one}; {_near(one, ours.cameras)}"
    if twice := sorted(camera for camera, count in Counter(shown).items() if count > 1):
        yield f"cameras: {', '.join(twice)} would show two of the store's cameras; name each once"
    if missing := [camera for camera in ours.cameras if camera not in shown]:
        yield (
            f"cameras: nothing shows {', '.join(missing)}, which the demos have; the store has"
            f" {', '.join(theirs.cameras)}: write cameras: {{{theirs.cameras[0]}: {missing[0]}}}"
        )


def _views(part: StorePart, ours: Contract, theirs: Contract) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return pairs (the store's camera, the cameras that show it)."""
    return part.cameras or tuple((camera, (camera,)) for camera in theirs.cameras if camera in ours.cameras)


def _filters(part: StorePart, manifest: Manifest) -> Iterator[tuple[str, npt.NDArray[np.bool_] | str]]:
    """Yield the name of each filter with the rows that it keeps, (N,), or with what is wrong with it."""
    tasks = np.asarray(manifest.column("task").to_pylist(), object)
    for task in part.tasks:
        if task not in manifest.tasks:
            yield "tasks", f"the store has no task {task}; {_near(task, [*manifest.tasks])}"
    if part.tasks:
        yield "tasks", np.isin(tasks, part.tasks)
    sources = manifest.column("source").to_pylist()
    for text in part.source:
        if not any(text in source for source in sources):
            known = [name for name, _ in grouped(Counter(sources))]
            yield "source", f"no episode's source contains {text}; {_near(text, known)}"
    if part.source:
        yield "source", np.array([any(text in source for text in part.source) for source in sources])
    if part.success is not None:
        yield "success", np.array([own is part.success for own in manifest.column("success").to_pylist()])
    if part.quality:
        yield "quality", _of_quality(part.quality, manifest.episode_ids)


def _of_quality(path: str, ids: Sequence[str]) -> npt.NDArray[np.bool_] | str:
    """Return the rows that a quality list keeps, or what is wrong with it: a file with one episode id to keep
    per line, or the findings that `demoscale data check --json` prints, whose episodes are left out.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        return f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is no text'})"
    keep = not text.lstrip().startswith(("{", "["))
    if keep:
        listed = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    else:
        try:
            found = json.loads(text)
            findings = found["findings"] if isinstance(found, dict) else found
            listed = [episode for finding in findings for episode in finding["episodes"]]
        except (ValueError, KeyError, TypeError):
            return f"{path} holds no findings of `demoscale data check --json`, and no list of episode ids"
    if unknown := sorted(set(listed) - set(ids)):
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        return (
            f"{path} names episodes that the store does not have: {', '.join(unknown[:NAMED])}{more};"
            f" {nearest(unknown[0], ids, 'make it of this store')}"
        )
    return np.isin(np.asarray(ids, object), listed, invert=not keep)


def _renamed(rows: pa.Table, name: str, part: StorePart, ours: Contract, store: str) -> pa.Table:
    """Return a part's rows with unambiguous ids, the places of their objects, and the cameras to read in the
    order of the contract's.
    """
    shows = {one: camera for camera, cameras in part.cameras for one in cameras}
    columns: dict[str, pa.Array] = {
        "episode_id": pa.array([f"{name}{SEPARATOR}{one}" for one in rows["episode_id"].to_pylist()]),
        "key": pa.array([fetchable(store, key) for key in rows["key"].to_pylist()]),
    }
    if part.action_free_only:
        cameras = [shows.get(camera, camera) for camera in ours.cameras]
        columns["cameras"] = pa.array([cameras] * len(rows), SCHEMA.field("cameras").type)
        columns["labelled"] = pa.array([False] * len(rows))
        columns["action_stats"] = pa.nulls(len(rows), SCHEMA.field("action_stats").type)
    for field, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(field), field, values)
    return rows.select(SCHEMA.names).cast(SCHEMA)


def _near(name: str, known: Collection[str]) -> str:
    return nearest(name, known, f"there are {', '.join(known)}")


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def weights_of(manifest: Manifest) -> tuple[tuple[str, float], ...]:
    """Return pairs (beginning of the ids of a store's episodes, its weight); empty without weights."""
    return tuple((part.prefix, part.weight) for part in manifest.parts if part.weight is not None)


def stores_key(parts: Sequence[MergedPart]) -> list[Any]:
    """Return what of the parts shapes a policy, JSON-safe: stores by content, filters, weights, and whether
    it is the only source of action-free episodes. What a quality list keeps is part of the merged manifest's
    fingerprint, wherever the file is.
    """
    return [
        [part.fingerprint, {**part.filters, "quality": ""}, part.weight, *(["alone"] * bool(part.video_kind))]
        for part in parts
    ]
