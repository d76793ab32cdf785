"""The outbox after a power failure: the damaged part is set aside by name, and everything else is
delivered.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.outbox import OutboxWriter, journals
from orchestrator.tracking.outbox_records import LogMetrics, to_note
from orchestrator.tracking.outbox_relay import OutboxRelay


class FakeTracker:
    """A tracker that records its calls."""

    def __init__(self, told: list[int]) -> None:
        self._told = told

    def open(self) -> None: ...

    def settle(self) -> None: ...

    def metrics(self, arm_id: str, step: int, values: dict[str, float], *_: Any) -> None:
        self._told.append(step)


def record(n: int) -> LogMetrics:
    return LogMetrics(arm_id="arm", step=n, values={"loss": 1.0})


def empty_count(path: Path) -> None:
    path.with_suffix(".told").write_text("")


def garbage_count(path: Path) -> None:
    path.with_suffix(".told").write_bytes(b"\0\0\0\xff")


def count_beyond_the_end(path: Path) -> None:
    path.with_suffix(".told").write_text("99999")


def empty_journal(path: Path) -> None:
    path.write_bytes(b"")


def zeros_for_a_journal(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def header_of_another_kind(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"[1]\n" + b"".join(lines[1:]))


def zeros_at_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes(20))


def zeros_in_the_middle(path: Path) -> None:
    first, second, third, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + bytes(len(second) - 1) + b"\n" + third + b"".join(rest))


def a_list_in_the_middle(path: Path) -> None:
    first, _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"[1, 2]\n" + b"".join(rest))


def no_method_in_the_middle(path: Path) -> None:
    first, _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b'{"n": 1}\n' + b"".join(rest))


def nothing(path: Path) -> None: ...


SPOILT: list[tuple[Callable[[Path], None], list[int], str]] = [
    (nothing, [1, 2, 9], ""),
    (empty_count, [1, 2, 9], ""),
    (garbage_count, [1, 2, 9], ""),
    (count_beyond_the_end, [1, 2, 9], ""),
    (empty_journal, [9], "its first line is damaged"),
    (zeros_for_a_journal, [9], "its first line is damaged"),
    (header_of_another_kind, [9], "its first line is damaged"),
    (zeros_at_the_end, [1, 9], "its last record was cut off"),
    (zeros_in_the_middle, [2, 9], "is damaged and not published"),
    (a_list_in_the_middle, [2, 9], "is damaged and not published"),
    (no_method_in_the_middle, [2, 9], "is damaged and not published"),
]


@pytest.mark.parametrize(("spoil", "delivered", "sentence"), SPOILT)
def test_damaged_outbox_delivers_everything_but_the_damaged_part(
    tmp_path: Path, spoil: Callable[[Path], None], delivered: list[int], sentence: str
) -> None:
    earlier = OutboxWriter(tmp_path, {"sweep": "x"})
    for n in (1, 2):
        earlier.append(*to_note(record(n)))
    earlier.close()
    spoil(earlier.path)
    told, said = list[int](), list[str]()
    teller = OutboxRelay("u", tmp_path, {"sweep": "x"}, said.append, lambda uri, **about: FakeTracker(told))
    teller.enqueue(record(9))
    try:
        assert teller.wait(10.0)
        assert teller.left == 0
        assert teller.failure is None
    finally:
        teller.close()
    assert told == delivered
    assert (
        len(said),
        all(sentence in line and "--rebuild" in line and earlier.path.stem in line for line in said),
    ) == (bool(sentence), True)
    assert [path for path in journals(tmp_path) if path == earlier.path] == [], (
        "what is delivered or set aside is not read again"
    )


def test_outbox_is_delivered_in_order_after_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = OutboxWriter(tmp_path, {"sweep": "x"})
    earlier.append(*to_note(record(1)))
    earlier.close()
    monkeypatch.setattr("orchestrator.tracking.outbox.time.time_ns", lambda: 1)
    told = list[int]()
    teller = OutboxRelay("u", tmp_path, {"sweep": "x"}, open_tracker=lambda uri, **about: FakeTracker(told))
    teller.enqueue(record(2))
    try:
        assert teller.wait(10.0)
    finally:
        teller.close()
    assert told == [1, 2]


def test_outbox_relay_reports_an_error_of_its_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, lock: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(OutboxRelay, "_alone", broken)
    teller = OutboxRelay("u", tmp_path, {"sweep": "x"}, open_tracker=lambda uri, **about: FakeTracker([]))
    teller.enqueue(record(1))
    assert not teller.wait(5.0)
    assert isinstance(teller.failure, ZeroDivisionError)
    teller.close()
