"""Validation of untrusted text and JSON, within bounds of size, depth and number of values.

Standard library only, because `policy.interface` imports it in every process.
"""

import json
import math
import unicodedata
from typing import Any

MOST_DEPTH = 64
"""Maximum nesting of lists and objects."""
MOST_VALUES = 1_000_000
"""Maximum values of one document. An empty object needs 3 bytes of text but about 90 bytes of memory, so a
limit on the text does not suffice.
"""
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, most: int = 500) -> str:
    """Return one line that is safe to print: control characters, text direction marks and lone surrogates
    escaped, cut to `most` characters.
    """
    cut = text[:most]
    escaped = "".join(
        (
            character.encode("unicode_escape").decode()
            if unicodedata.category(character) in _UNPRINTABLE
            else character
        )
        for character in cut
    )
    return escaped + ("..." if len(text) > most else "")


def clean_text(value: object, what: str, most: int) -> str:
    """Return the value if it is text of at most `most` characters without control characters; otherwise raise
    ValueError, which names `what`.
    """
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {printable(repr(value), 40)}")
    if len(value) > most:
        raise ValueError(f"{what} has {len(value)} characters; at most {most} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError(
            f"{what} holds a control character or half a surrogate pair: {printable(ascii(value), 60)}"
        )
    return value


def read_json(data: bytes, most_bytes: int) -> Any:
    """Parse JSON within bounds.

    Raises ValueError, with one sentence, if the data is too large or too deep, is not JSON, or holds a number
    that is not finite or an object with a duplicate name.
    """
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_distinct,
        )
    except RecursionError:
        raise ValueError(f"it nests deeper than {MOST_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} at line {error.lineno})") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    _bound_depth(value)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not a finite number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it holds {printable(text, 40)}, which is too large for a number")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"an object holds {printable(repr(twice), 60)} twice")
    return found


def _bound_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not any(isinstance(inner, (list, dict)) for inner in level):
            return
    raise ValueError(f"it nests deeper than {MOST_DEPTH} levels")
