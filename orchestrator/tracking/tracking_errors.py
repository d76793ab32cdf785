"""Classification of a tracking server's errors: which are transient, and messages for them without
credentials.
"""

import re

from orchestrator import redaction as credentials

_PASSES = (401, 403, 408, 425, 429)
"""HTTP codes that depend on time or credentials, and not on the record."""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error; 0 for none."""
    if (
        code := re.search(r"too many (\d{3}) error responses|failed with error code (\d{3})", str(error))
    ) is not None:
        return int(code[1] or code[2])
    if (response := getattr(error, "response", None)) is not None:
        return int(getattr(response, "status_code", 0) or 0)
    asked = getattr(error, "get_http_status_code", None)
    return int(asked()) if asked else 0


def is_rejected(error: BaseException) -> bool:
    """Return whether the record is at fault and would be refused again."""
    status = status_of(error)
    if status:
        return 400 <= status < 500 and status not in _PASSES
    return isinstance(error, (TypeError, ValueError, LookupError, AttributeError)) and not isinstance(
        error, OSError
    )


def is_unavailable(error: BaseException) -> bool:
    """Return whether the error is the tracking server's and may be transient."""
    return type(error).__module__.partition(".")[0] in ("mlflow", "requests", "urllib3") and not is_rejected(
        error
    )


def reason(error: BaseException) -> str:
    """Return why MLflow cannot be written now, in fixed words, since a server's may repeat what it
    was sent.
    """
    status, text = status_of(error), str(error)
    if status in (401, 403):
        return (
            f"refuses the credentials ({status}); set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD"
        )
    if "too many" in text or (status and status != 500):
        return f"answers with error {status}"
    if re.search(r"time(d )?out", text, re.I):
        return "does not answer in time"
    if re.search(r"IncompleteRead|prematurely|Connection broken", text):
        return "breaks off its answers"
    if re.search(
        r"refused|resolve|resolution|unreachable|not known|reset|aborted|disconnected|Max"
        r" retries|ConnectionError",
        text,
    ):
        return "cannot be reached"
    return f"fails ({type(error).__name__})"


def redacted(text: str) -> str:
    """Return a text on one line of at most 300 characters, without credentials, including those of the
    environment.
    """
    return " ".join(credentials.redact(text).split())[:300]
