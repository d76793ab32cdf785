"""The bench of a GPU without one: parts that fail, run late or are refused."""

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import gpu
from bench.gpu import PARTS, Measure, Part, Row, Setting, measured, rows_of, run_parts
from bench.results import NOT_HERE

CPU = Setting("cpu", True)


def out_of_memory() -> tuple[float, ...]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def broken() -> tuple[float, ...]:
    raise ValueError("it\nis broken")


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", script]


ROWS = f"import json; print({gpu.ROW!r} + json.dumps(dict(keys=['a'], values=[1.5], why='')), flush=True); "


def test_measure_that_fails_is_a_row_and_the_next_is_measured() -> None:
    measures = [
        Measure("x", ("x", "y"), out_of_memory),
        Measure("z", ("z",), broken),
        Measure("a", ("a",), lambda: (1,)),
    ]
    assert [*measured(measures, CPU)] == [
        Row(("x", "y"), why="does not fit the GPU's memory"),
        Row(("z",), why="ValueError: it is broken"),
        Row(("a",), (1,)),
    ]


@pytest.mark.parametrize(
    ("then", "seconds", "why"),
    [
        ("import time; time.sleep(60)", 0.5, "not reached: its part had 0 s"),
        ("import os; os._exit(9)", 30.0, "its process ended with exit code 9"),
        ("print('other output')", 30.0, ""),
    ],
)
def test_part_that_ends_early_leaves_the_rows_it_measured(then: str, seconds: float, why: str) -> None:
    assert rows_of(python(ROWS + then), seconds) == ([Row(("a",), (1.5,))], why)


def test_parts_have_every_key_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = {
        "good": [Measure("it", ("a",), broken), Measure("more of it", ("b", "c"), broken)],
        "bad": [Measure("worse", ("d",), broken)],
    }
    parts = {name: Part(1.0, lambda _, own=own: own) for name, own in measures.items()}
    monkeypatch.setattr(gpu, "PARTS", parts)
    commands = {"good": python(ROWS), "bad": python("import os; os._exit(3)")}
    answers = run_parts(CPU, lambda name: commands[name], budget_s=120)
    assert answers == {"a": 1.5, "b": None, "c": None, "d": None, "rows_failed": 2}
    printed = capsys.readouterr().out
    assert "its process ended with exit code 3" in printed
    assert "1 of 3 rows measured" in printed


def test_keys_are_distinct_and_equal_on_both_devices() -> None:
    """A page made on a GPU and a short run without one have the same keys."""
    on = [
        [key for part in PARTS.values() for measure in part.measures(setting) for key in measure.keys]
        for setting in (CPU, Setting("cuda", False))
    ]
    assert sorted(on[0]) == sorted(on[1])
    assert len(set(on[0])) == len(on[0])
    assert sum(part.share_s for part in PARTS.values()) <= gpu.BUDGET_S


def test_without_a_gpu_the_command_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == NOT_HERE
    assert done.stdout == ""
    assert done.stderr.startswith("torch sees no GPU on this machine; run it where there is one")
    assert len(done.stderr.splitlines()) == 1


def test_gpu_tests_are_the_files_with_the_marker() -> None:
    found = gpu.gpu_tests()
    assert "tests/policy/test_trainer.py" in found
    assert all("@pytest.mark.gpu" in Path(gpu.CHECKOUT, file).read_text() for file in found)
