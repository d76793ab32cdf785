"""Infrastructure failures of a sweep: storage, disks, the cluster's nodes, the sweep's own processes. They
are not failures of an arm.
"""

import errno
import re

from orchestrator.storage.base import NoObject, StorageError
from orchestrator.tracking.mlflow_writer import TrackingError
from policy.errors import RESUMABLE, DemoscaleError
from sim_workers.checkout import CodeChangedError

FULL = (errno.ENOSPC, errno.EDQUOT)
SIGNS = (
    (r"No space left on device|\[Errno 28\]|Disk quota exceeded|\bOutOfDiskError\b", "the disk is full"),
    (r"^[\w.]*\b(?:StorageError|_UnavailableError): (.*)$", ""),
    (r"^[\w.]*\bCodeChangedError: (.*)$", ""),
    (
        (
            r"AWS Error"
            r" (?:NETWORK_CONNECTION|SLOW_DOWN|THROTTLING"
            r"|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|UNKNOWN)\b"
        ),
        "the object storage does not answer",
    ),
    (
        (
            r"AWS Error"
            r" (?:ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN"
            r"|UNRECOGNIZED_CLIENT|CLIENT_SIGNING_FAILURE|(?:INVALID|INCOMPLETE)_SIGNATURE"
            r"|SIGNATURE_DOES_NOT_MATCH|REQUEST_EXPIRED|REQUEST_TIME_TOO_SKEWED|NO_SUCH_BUCKET)\b"
        ),
        "the object storage refuses a training process; check its credentials, the clock of its node and the"
        " bucket",
    ),
    (r"\b(?:NodeDiedError|ObjectStoreFullError|RaySystemError|RpcError)\b", ""),
    (
        (
            r"[Tt]he (?:actor|task|worker) died because its node has died|node was"
            r" (?:terminated|preempted|drained)"
        ),
        "a node of the cluster died",
    ),
)
"""Patterns of such failures in a training run's trace, with their text; if empty, the pattern's group or else
the matching line.
"""


class InfrastructureError(DemoscaleError):
    """Error of one sentence: which infrastructure failed. Finished work is kept, and the same command resumes
    the sweep.
    """

    exit_code = RESUMABLE


def cause_in(trace: str) -> str:
    """Return the infrastructure failure in a training run's trace, as part of a sentence; empty if the run
    itself failed.
    """
    for sign, said in SIGNS:
        if found := re.search(sign, trace, re.MULTILINE):
            line = trace[trace.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
            return (said or (found[1] if found.re.groups else line)).strip()[:300]
    return ""


def cause_of(error: BaseException) -> str:
    """Return the infrastructure failure behind a driver's error, as part of a sentence; empty for every other
    error.
    """
    if isinstance(error, (StorageError, TrackingError, CodeChangedError)) and not isinstance(error, NoObject):
        # in a running sweep, a TrackingError means that the disk of the outbox cannot be written
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk is full ({error.filename or error.strerror})"
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    if isinstance(error, GetTimeoutError):
        return "Ray does not answer"
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return " ".join(str(error).split())[:300]
    return ""
