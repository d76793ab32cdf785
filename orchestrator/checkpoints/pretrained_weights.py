"""Pretrained weights from wherever a sweep names them: a bucket's become a folder here, folders and hub ids stay what they are."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.storage.base import download


def fetch_weights(source: str | Path, folder: Path) -> Path:
    """What `policy.weights` reads: of an `s3://` prefix its whole copy below `folder`, made once; anything else as it is.

    The copy gets its name when it is whole: a fetch that was killed leaves nothing that would be taken for weights. A prefix's content
    must not change. StorageError if the bucket cannot be read; WeightsError if there is nothing.
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
            # Here, not above: it brings torch and diffusers, 4 CPU seconds in every process that only passes training jobs on.
            from policy.weights import WeightsError

            raise WeightsError(f"{uri}: there is nothing under this prefix; correct it, or copy the weights there")
        try:
            os.replace(part, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
