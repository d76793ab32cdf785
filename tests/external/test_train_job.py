"""The loop of steps that the shipped policies share, by steps and by time."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CHECKOUT / "policies"))
    from common import train_job

    handler = signal.getsignal(signal.SIGTERM)
    yield train_job
    signal.signal(signal.SIGTERM, handler)


def job(module: Any, folder: Path, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "policy": folder,
        "data": folder,
        "format": "lerobot_v3",
        "episodes": 1,
        "frames": 1,
        "contract": {},
        "checkpoints": folder / "checkpoints",
        "report": folder / "report.jsonl",
        "resume": None,
        "first_step": 0,
        "steps": 0,
        "seconds": 0,
        "first_second": 0,
        "batch_size": 4,
        "checkpoint_every": 4,
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "options": {},
    }
    return module.TrainJob(**{**fields, **changes})


def reported(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def save(folder: Path, step: int) -> None:
    (folder / "weights").write_text(str(step))


@pytest.mark.parametrize(
    ("changes", "checkpoints", "shares"),
    [
        ({"steps": 9}, [4, 8, 9], []),
        ({"steps": 9, "first_step": 6}, [8, 9], []),
        ({"seconds": 10}, [2, 4, 5], [0, 0.2, 0.4, 0.6, 0.8]),
        ({"seconds": 10, "first_step": 2, "first_second": 4.5}, [4, 5], [0.45, 0.65, 0.85]),
        ({"seconds": 10, "checkpoint_every": 0.5}, [1, 2, 3, 4, 5], [0, 0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_take_steps_saves_when_due_and_ends_with_its_steps_or_its_time(
    module: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    checkpoints: list[int],
    shares: list[float],
) -> None:
    now, seen = [0.0], list[float]()
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def step() -> float:
        now[0] += 2
        return 1.0

    def slow(folder: Path, number: int) -> None:
        now[0] += 100  # writing a checkpoint counts for nothing
        save(folder, number)

    module.take_steps(job(module, tmp_path, **changes), step, slow, seen.append)
    lines = reported(tmp_path)
    assert [line["step"] for line in lines if "checkpoint" in line] == checkpoints
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"step_{number:06d}" for number in checkpoints
    ]
    assert seen == pytest.approx(shares)
    assert ("seconds" in lines[-1]) is ("seconds" in changes)
    assert lines[-1].get("seconds", 10) >= 10


def test_take_steps_saves_at_sigterm_and_stops_at_a_loss_that_is_not_finite(
    module: Any, tmp_path: Path
) -> None:
    def step() -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    module.take_steps(job(module, tmp_path, seconds=1e6), step, save)
    (line,) = reported(tmp_path)
    assert (line["step"], line["checkpoint"]) == (1, "step_000001")
    with pytest.raises(SystemExit, match="step 1: the loss is nan"):
        module.take_steps(job(module, tmp_path, steps=3), lambda: math.nan, save)
