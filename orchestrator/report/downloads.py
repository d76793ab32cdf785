"""Files that a page carries as `data:` links, so that they are saved without a network and a script."""

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.redaction import redact, redacted_in

MOST_BYTES = 3_000_000
"""Size limit of each file in bytes of base64; a larger one is left out."""


@dataclass(frozen=True)
class Download:
    """One file of a page."""

    name: str
    words: str
    """What it holds."""
    kilobytes: int
    uri: str
    """The file as a data: URI; empty if it is too large for a page."""


def downloads(
    name: str, report: Mapping[str, Any], tables: Mapping[str, str], sweep_yaml: str
) -> Sequence[Download]:
    """Return the files of a sweep's page without secrets: its numbers, its tables and its sweep file.

    report: JSON-safe. tables: what each holds, and its CSV. sweep_yaml: empty if it is not known.
    """
    found = [
        _file(
            f"{name}.json", "the curve's numbers (JSON)", "application/json", json.dumps(redacted_in(report))
        )
    ]
    for what, text in tables.items():
        found.append(_file(f"{name}-{what}.csv", f"{what} (CSV)", "text/csv", redact(text)))
    if sweep_yaml:
        found.append(_file(f"{name}.yaml", "the sweep file (YAML)", "application/yaml", redact(sweep_yaml)))
    return found


def episodes_csv(arms: Iterable[str], rows: Iterable[tuple[str, str, Iterable[object]]]) -> str:
    """Return one line per episode: its task, its id, and a value of every arm, empty if it has none.

    rows: task, episode id, one value per arm.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["task", "episode", *arms])
    for task, episode, values in rows:
        lines.writerow([task, episode, *values])
    return text.getvalue()


def _file(name: str, words: str, kind: str, text: str) -> Download:
    data = text.encode()
    encoded = base64.b64encode(data).decode() if len(data) * 4 <= MOST_BYTES * 3 else ""
    uri = f"data:{kind};base64,{encoded}" if encoded else ""
    return Download(name.replace("/", "-"), words, max(1, round(len(data) / 1000)), uri)
