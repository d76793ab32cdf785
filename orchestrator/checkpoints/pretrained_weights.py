"""Pretrained weights that a sweep names: those in a bucket are copied to a local folder, folders and hub ids
are passed through.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.storage.base import download


def fetch_weights(source: str | Path, folder: Path) -> Path:
    """Return a source that `policy.weights` reads: for an `s3://` prefix, a copy below `folder`, made once;
    any other source unchanged.

    The copy gets its name when it is complete, so a killed fetch leaves nothing that would be taken for
    weights. A prefix's content must not change. Raises StorageError if the bucket cannot be read,
    WeightsError if the prefix is empty.
    """
    uri = str(source).rstrip("/")
    if not uri.startswith("s3://"):
        return Path(source)
    target = folder / f"{uri.rpartition('/')[2]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        download(uri, part)
        if not any(part.iterdir()):
            # Imported here, not above: torch and diffusers cost 4 CPU seconds in every process that only
            # forwards training jobs.
            from policy.weights import WeightsError

            raise WeightsError(
                f"{uri}: there is nothing under this prefix; correct it, or copy the weights there"
            )
        try:
            os.replace(part, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
