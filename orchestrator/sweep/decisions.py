"""Decisions of a sweep's search in its storage, so that a later run repeats them.

decisions/<name>/<search>/proposed/000001.json        an arm that the search proposed
                          chosen/000001.json          why a next-arm search chose an arm, `next_search.Choice`
                          ended/000001-<digest>.json  why a next-arm search ended
                          stopped/<arm id>.json       an arm that the search stopped, and after which step
"""

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.provenance import digest
from orchestrator.storage.base import Storage
from orchestrator.storage.notes import read_json_objects


@dataclass(frozen=True)
class Decisions:
    """Decisions of one search; what is stored stays."""

    storage: Storage
    prefix: str
    """Key prefix; a sweep with other search settings has another one."""

    @classmethod
    def of(cls, sweep: SweepConfig, storage: Storage) -> "Decisions":
        """Return the decisions of the search that a sweep file asks for."""
        search, suite_config = sweep.search.model_dump(mode="json"), sweep.suite
        if sweep.search.next:  # what may change while a search goes on
            search["next"] = {"target": sweep.search.next.target}
        else:
            del search["next"]
        # earlier versions had no such fields, and their searches go on
        later = {"processors"} if suite_config.processors == "one" else set[str]()
        later |= {"libero_reset"} if suite_config.libero_reset == "settled" else set[str]()
        suite = suite_config.model_dump(
            mode="json", exclude={"video_clips", "references", "report"} | later, exclude_none=True
        )
        for name, none in (("sampler", {}), ("every", 1)):
            if suite[name] == none:
                del suite[name]  # the fields of earlier versions, whose decisions it finds
        return cls(storage, f"decisions/{sweep.name}/{digest([search, suite])}")

    def proposed(self) -> list[Arm]:
        """Return the arms that a search has proposed, in order."""
        return [Arm(**told) for told in self._read("proposed").values()]

    def record_proposal(self, arm: Arm, number: int) -> None:
        """Store a proposal."""
        self._write(f"proposed/{number:06d}", vars(arm))

    def choices(self) -> list[dict[str, Any]]:
        """Return the decisions of a next-arm search (`next_search.Choice`) in order, JSON-safe."""
        return [*self._read("chosen").values()]

    def record_choice(self, number: int, choice: dict[str, Any]) -> None:
        """Store a decision of a next-arm search; that of an earlier run stays."""
        self._write(f"chosen/{number:06d}", choice)

    def ends(self) -> list[str]:
        """Return why a next-arm search ended, once per budget with which it did."""
        return [told["why"] for told in self._read("ended").values()]

    def record_end(self, number: int, why: str) -> None:
        """Store the reason for which a next-arm search ended after its first `number` decisions."""
        self._write(f"ended/{number:06d}-{digest(why)}", {"chosen": number, "why": why})

    def stopped(self) -> dict[str, int]:
        """Return the arms that the search stopped: arm id -> last step."""
        return {arm_id: told["step"] for arm_id, told in self._read("stopped").items()}

    def record_stop(self, arm_id: str, step: int) -> None:
        """Store that the search stopped the arm after `step`."""
        self._write(f"stopped/{arm_id}", {"step": step})

    def _read(self, kind: str) -> dict[str, Any]:
        return read_json_objects(self.storage, f"{self.prefix}/{kind}/")

    def _write(self, name: str, decision: dict[str, Any]) -> None:
        self.storage.put_if_absent(f"{self.prefix}/{name}.json", json.dumps(decision, indent=1).encode())
