"""Pictures of the episodes with findings, on one sheet."""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np

from orchestrator.data.episode_format import decode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.quality.findings import Finding
from orchestrator.data.quality.traits import Array
from orchestrator.storage.base import Storage


def findings_sheet(rows: Sequence[tuple[str, list[Array], str]], columns: int = 2) -> bytes:
    """Return a PNG with a panel per (title, pictures, text): the pictures side by side, the text
    under them.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(rows))
    lines = [textwrap.fill(text, 76, replace_whitespace=False).splitlines()[:4] for _, _, text in rows]
    deep = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(5.2 * columns, 2.7 * deep), dpi=100, layout="constrained")
    parts = np.asarray(figure.subfigures(deep, columns, squeeze=False)).ravel()
    for part, (title, pictures, _), text in zip(parts, rows, lines, strict=False):
        part.suptitle(title, fontsize=8)
        part.supxlabel("\n".join(text).replace("$", r"\$"), fontsize=7)
        for place, picture in zip(part.subplots(1, len(pictures), squeeze=False).flat, pictures, strict=True):
            place.axis("off")
            place.imshow(picture, interpolation="nearest", vmin=0, vmax=255)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def pictured(
    storage: Storage, entry: EpisodeEntry, findings: Sequence[Finding]
) -> tuple[str, list[Array], str]:
    """Return an episode's first, middle and last frame as a row of the sheet, of the camera that its most
    severe finding is about.
    """
    camera = next((finding.where for finding in findings if finding.where in entry.cameras), entry.cameras[0])
    try:
        frames = decode(
            fetch(storage, entry),
            (camera,),
            with_actions=False,
            wanted=sorted({0, entry.length // 2, entry.length - 1}),
        ).frames[camera]
    except Exception:  # an unreadable episode has a finding of its own
        frames = np.zeros((1, *entry.image_size, 3), np.uint8)
    text = "\n".join(f"{finding.kind} {finding.where}: {finding.sentence}" for finding in findings)
    return f"{entry.episode_id}, {camera}", list(frames), text
