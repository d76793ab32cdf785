"""Table of exchange rates: lines with videos against the line on demonstrations alone, in every output."""

import json
from typing import Any

import numpy as np
import pytest

from orchestrator.cli.curve_output import print_curve
from orchestrator.config.arms import Arm
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.tracking.mlflow_reader import ScoredArm
from synthetic_curves import several

SCENES = 150


def line(name: str, **own: Any) -> dict[str, Any]:
    return {"name": name, "policy": "video_action", "train": {}, "data": None, "action_free": None} | own


LINES = [
    line("no_videos", action_free=False),
    line("same_task"),
    line("blurred", data={"labelled": None, "videos": "other_camera"}),
    line("other_task", data={"labelled": None, "videos": "other_task"}),
]
WORTH = {"no_videos": 1.0, "same_task": 3.0, "blurred": 0.2, "other_task": 1.0}
"""Factor by which a line's videos multiply its demonstrations."""


def curve(lines: list[dict[str, Any]] = LINES, seeds: int = 3, worth: dict[str, float] = WORTH) -> Curve:
    """Return a curve in which four videos per demonstration multiply demonstrations by `worth`."""
    rng = np.random.default_rng(4)
    hard, arms = rng.standard_normal(SCENES), []
    for name, factor in worth.items():
        for demos in (2, 6, 18):
            for seed in range(seeds):
                odds = 1.5 * np.log(demos * factor / 6) + 0.1 * rng.standard_normal() - hard
                won = rng.random(SCENES) < 1 / (1 + np.exp(-odds))
                outcomes = {f"Lift-{i}-{i}": bool(own) for i, own in enumerate(won)}
                arm = Arm(demos, 0.0 if name == "no_videos" else 4.0, seed, name)
                arms.append(ScoredArm(arm, "p", 100, int(won.sum()), SCENES, 0, outcomes))
    sweep = {"policy": {"lines": lines}, "data": {"action_free_ratio": [4.0]}, "train": {"steps": 100}}
    return Curve("exchange", tuple(arms), sweep)


@pytest.fixture(scope="module")
def whole() -> Curve:
    return curve()


def test_rows_say_worth_no_evidence_or_hurt(whole: Curve) -> None:
    assert whole.exchange
    rows = {row.series.policy: row for row in whole.exchange.rows}
    assert {name: (row.videos, row.base.policy) for name, row in rows.items()} == {
        "same_task": ("same_task", "no_videos"),
        "blurred": ("other_camera", "no_videos"),
        "other_task": ("other_task", "no_videos"),
    }
    assert {name: row.verdict for name, row in rows.items()} == {
        "same_task": "replace demonstrations",
        "blurred": "hurt",
        "other_task": "no evidence",
    }
    same, hurt, other = rows.values()
    assert same.rate
    assert same.rate.factor.interval.low <= 3 <= same.rate.factor.interval.high
    assert same.rate.worth.interval.low <= 2 <= same.rate.worth.interval.high, "4 videos are worth 2 demos"
    assert same.text.startswith(f"One demonstration is worth {same.worth_in_words} videos of same_task (95 %")
    assert hurt.text.startswith("Videos of other_camera hurt: 4 videos per demonstration are worth 0.")
    assert other.text.startswith("No evidence that videos of other_task replace demonstrations: 4 videos per")
    assert (hurt.worth_in_words, hurt.worth_interval, other.worth_in_words) == ("–", "–", "–")  # noqa: RUF001
    assert other.worth_interval.endswith(" or more"), "how few videos a demonstration is not worth"


def test_text_json_and_page_show_the_same_table(whole: Curve, capsys: pytest.CaptureFixture[str]) -> None:
    assert whole.exchange
    print_curve(whole)
    printed, page, told = capsys.readouterr().out, whole.page([]), whole.to_json()["exchange"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    hurt = told["rows"][1]
    assert (hurt["verdict"], hurt["videos_per_demo"]) == ("hurt", dict.fromkeys(("value", "low", "high")))
    for row in whole.exchange.rows:
        assert row.text in printed
        assert row.text in whole.answer()
        assert row.factor_interval in page
        assert f"{row.verdict}</td>" in page
    for text in (printed, page):
        assert "every arm is trained for as many optimiser steps, with videos or without." in text


def test_flat_lines_are_no_evidence() -> None:
    flat = curve(worth={"no_videos": 1e-9, "same_task": 1e-9})
    assert flat.exchange
    (row,) = flat.exchange.rows
    assert row.text == "No evidence that videos of same_task replace demonstrations: both lines are flat."
    assert (row.verdict, row.factor_in_words, row.worth_interval) == ("no evidence", "–", "–")  # noqa: RUF001
    assert flat.to_json()["exchange"]["rows"][0]["factor"] == dict.fromkeys(("value", "low", "high"))


def test_base_is_the_same_recipe_on_demonstrations_alone() -> None:
    other = line("no_videos", action_free=False, train={"steps": 50})
    assert curve([other, *LINES[1:]]).exchange is None, "another recipe is no base"
    assert curve(LINES, seeds=2).exchange is None, "two seeds say nothing about recipes"
    plain = several(gain=2.0, noise=0.05)
    assert plain.exchange
    (row,) = plain.exchange.rows
    assert (row.videos, row.base) == ("action-free video", plain.lines[0])
    assert row.rate
    assert row.rate.factor == plain.data_equivalence(plain.lines[1])
    assert plain.exchange.named == (), "the sentence on the ratio says it"
