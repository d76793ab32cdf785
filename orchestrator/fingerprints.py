"""Keys of results, stored part by part, so that a later run can report which parts differ.

    keys/<fingerprint>.json     the parts of an arm's training, or of the protocol of a score or an action
                                error, written once by the first run that has them

A fingerprint is a hash of its parts. The code is one part: one hash in the fingerprint, a hash per file in
the stored key.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from orchestrator.code_fingerprint import fingerprint_of
from orchestrator.provenance import digest
from orchestrator.storage.base import NoObject, Storage
from orchestrator.storage.notes import read_json_object, read_json_objects

Kind = Literal["training", "score", "action error"]
CODE = "code"
FOLDER = "keys/"


@dataclass(frozen=True)
class Key:
    """All inputs that two results must share to be interchangeable."""

    kind: Kind
    parts: Mapping[str, Any]
    """JSON values by name; `code` has the hash of every file's meaning (`code_fingerprint`)."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the parts, independent of the names of code files."""
        return digest({**self.parts, CODE: fingerprint_of(self.parts[CODE])})

    def keep(self, storage: Storage) -> None:
        """Write the parts to the storage unless they are there."""
        if not storage.exists(self._name(self.fingerprint)):
            note = {"kind": self.kind, "written": time.time(), "parts": self.parts}
            storage.put_if_absent(
                self._name(self.fingerprint), json.dumps(note, indent=1, sort_keys=True).encode()
            )

    @staticmethod
    def _name(fingerprint: str) -> str:
        return f"{FOLDER}{fingerprint}.json"

    @classmethod
    def kept(cls, storage: Storage, fingerprint: str) -> "Key | None":
        """Return the stored key of a fingerprint; None if there is none, as for fingerprints of earlier
        versions.
        """
        try:
            note = read_json_object(storage, cls._name(fingerprint))
        except NoObject:
            return None
        return cls(note["kind"], note["parts"])

    @classmethod
    def all_kept(cls, storage: Storage, kind: Kind) -> dict[str, "Key"]:
        """Return the stored keys of a kind by fingerprint, the most recently written first."""
        notes = read_json_objects(storage, FOLDER)
        newest = sorted(
            (name for name in notes if notes[name]["kind"] == kind),
            key=lambda name: -float(notes[name]["written"]),
        )
        return {name: cls(kind, notes[name]["parts"]) for name in newest}


def stored_like(storage: Storage, key: Key) -> str:
    """Return the fingerprint of the newest stored key that differs from `key` in code at most; its own if
    there is none.

    For `status` and `curve` of a sweep that an earlier version ran. A stored recipe may have fields that a
    key no longer holds.
    """
    if storage.exists(Key._name(key.fingerprint)):
        return key.fingerprint
    now = json.loads(json.dumps(key.parts))
    for fingerprint, stored in Key.all_kept(storage, key.kind).items():
        parts = {**stored.parts, CODE: now[CODE]}
        if isinstance(recipe := parts.get("recipe"), dict):
            steps = (
                {"video_steps": recipe.get("video_steps") or recipe.get("steps")}
                if recipe.get("mode") == "two_stage"
                else {}
            )
            parts["recipe"] = {
                name: value for name, value in (recipe | steps).items() if name in now["recipe"]
            }
        if parts == now:
            return fingerprint
    return key.fingerprint


@dataclass(frozen=True)
class Difference:
    """One part of two keys."""

    part: str
    stored: Any
    now: Any
    """Value in the current key; None in either field: that key lacks the part."""

    @property
    def differs(self) -> bool:
        """Whether the stored value of the part differs from today's."""
        return bool(self.stored != self.now)

    def to_json(self) -> dict[str, Any]:
        """Return the part and whether it differs, with both values if it does; JSON-safe."""
        return {"part": self.part, "differs": self.differs} | (
            {"stored": self.stored, "now": self.now} if self.differs else {}
        )

    def __str__(self) -> str:
        return f"differs: {_short(self.stored)} -> {_short(self.now)}" if self.differs else "same"


def compare(stored: Key, now: Key) -> list[Difference]:
    """Compare all parts of two keys. In parts of several named values, such as files or packages, every
    differing value is one difference.
    """
    found = []
    for part in dict.fromkeys((*now.parts, *stored.parts)):
        before, after = (json.loads(json.dumps(key.parts.get(part))) for key in (stored, now))
        if isinstance(before, dict) and isinstance(after, dict) and before != after:
            if part == CODE:  # a file that was only moved is not a difference
                before, after = _without_equals(before, after), _without_equals(after, before)
            names = sorted(
                name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            )
            found += [Difference(f"{part} {name}", before.get(name), after.get(name)) for name in names]
        else:
            found.append(Difference(part, before, after))
    return found


def _without_equals(hashes: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    return {file: found for file, found in hashes.items() if found not in others.values()}


def _short(value: Any) -> str:
    """Return a value on one line, cut to 60 characters."""
    if value is None:
        return "not there"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
