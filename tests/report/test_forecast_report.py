"""Forecasts of a sweep in sentences, as JSON, as a figure, and as printed by the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.evaluation.scores import Score
from orchestrator.report.forecast_report import SweepForecast, reach_in_words
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.forecast import DemosForecast
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.outcomes import make_outcome
from reporting_sweep import make_sweep
from synthetic_curves import scored, several, with_a_baseline


@pytest.fixture(scope="module")
def found() -> SweepForecast:
    """Return the forecast of two ratios, 3 seeds of 10 to 80 demos; video is worth half a doubling."""
    return SweepForecast(several(gain=0.5, noise=0.2), 0.9)


def test_forecast_report_has_a_sentence_and_a_back_test_per_line(found: SweepForecast) -> None:
    sentences = found.in_words()
    assert len(sentences) == 4
    assert sentences[0].startswith("Demos only: ")
    assert "90 % takes" in sentences[0]
    back = found.left_out
    assert [(one.line, one.demos, one.episodes) for one in back] == [
        ("Demos only", 80, 300),
        ("+ 1 action-free per demo", 80, 300),
    ]
    assert [one.held for one in back] == [False, True]
    assert "they have 242, OUTSIDE the interval" in sentences[2]
    assert "they have 256, inside the interval" in sentences[3]


def test_forecast_report_as_json_has_bounds_and_shapes(found: SweepForecast) -> None:
    told = json.loads(json.dumps(found.to_json()))
    first, second = told["lines"]
    assert (first["ratio"], second["ratio"]) == (0.0, 1.0)
    assert first["interval"][0] > 80
    assert first["demos"] > second["demos"], "video is worth something"
    assert sum(first["shapes"].values()) == pytest.approx(1)
    assert [one["held"] for one in told["backtest"]] == [False, True]


def test_forecast_figure_is_drawn(found: SweepForecast) -> None:
    svg = found.draw("svg").decode()
    assert "forecast" in svg
    assert "success rate" in svg


@pytest.mark.parametrize(
    ("forecast", "told"),
    [
        pytest.param(
            DemosForecast(0.9, 0.0, 123.0, Interval(91, 240), 0.0, 80),
            "90 % takes 120 demos, 90 % interval of the forecast 91 to 240; up to 80 were tried.",
            id="identified",
        ),
        pytest.param(
            DemosForecast(0.9, 0.0, 2000.0, Interval(60, float("inf")), 0.2, 100),
            "the scores do not identify how many demos 90 % takes: between 60 and more than 100,000"
            " (90 % interval of the forecast); with probability 0.20 none up to 100,000 reaches it.",
            id="open",
        ),
        pytest.param(
            DemosForecast(0.5, 0.0, 20.0, Interval(1.2, 88), 0.0, 100),
            "the scores do not identify how many demos 50 % takes: between 1 and 88"
            " (90 % interval of the forecast).",
            id="wide",
        ),
        pytest.param(
            DemosForecast(0.9, 0.0, float("inf"), Interval(float("inf"), float("inf")), 0.99, 100),
            "the scores do not identify how many demos 90 % takes: more than 100,000"
            " (90 % interval of the forecast); with probability 0.99 none up to 100,000 reaches it.",
            id="never",
        ),
    ],
)
def test_forecast_in_words(forecast: DemosForecast, told: str) -> None:
    assert reach_in_words(forecast) == told


def test_forecast_of_too_few_counts_or_seeds_is_refused_in_a_sentence() -> None:
    few = SweepForecast(with_a_baseline(seeds=(0, 1, 2)), 0.9).in_words()
    assert few[0] == (
        "video_action: 2 demo counts are too few to forecast from; it takes 3: add to data.demo_count."
    )
    one_seed = Curve("c", tuple(scored(demos, 0, wins) for demos, wins in ((5, 3), (10, 5), (20, 8))))
    assert SweepForecast(one_seed, 0.9).in_words() == [
        "Demos only: no point has 3 seeds, so the spread between trainings is unknown and nothing is forecast;"
        " add to seeds."
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish a sweep of four demo counts with three seeds, and one of two counts; return their storage."""
    folder = tmp_path_factory.mktemp("forecast")
    store = make_episode_store(folder / "lift", 8)
    for name, arms in (("rising", 8), ("short", 4)):
        sweep = make_sweep(folder, store, f"sqlite:///{folder / 'mlflow.db'}", name=name, arms=arms)
        state = SweepState.open(sweep.model_copy(update={"seeds": (0, 1, 2)}), pin=True)
        publisher, specs = TrackingPublisher(state), state.sweep.to_suite().episode_list()
        for arm_id, arm in state.arms().items():
            played = [make_outcome(spec, i < arm.demo_count - 1) for i, spec in enumerate(specs)]
            publisher.score(arm_id, 100, f"{arm_id}-100", "nominal", Score.of(played, len(specs)), played)
        assert publisher.finish(done=True) == ""
    return folder


def test_forecast_command_reads_sweeps_and_tests_them_back(published: Path, tmp_path: Path) -> None:
    def forecast(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["forecast", *arguments, "--storage", str(published)])

    told = forecast("rising", "--rate", "0.5", "--save", str(tmp_path / "forecast.png"))
    assert told.exit_code == 0, told.output
    assert "Demos only: " in told.output
    assert "without the arms of 4 demos, " in told.output
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    (answer,) = json.loads(forecast("rising", "--json").stdout)
    assert (answer["sweep"], answer["rate"]) == ("rising", 0.9)
    short = forecast("short")
    assert "2 demo counts are too few" in short.output
    every = forecast("--backtest")
    assert every.exit_code == 0, every.output
    assert "1 of 1 back-tests are inside the 90 % interval" in every.output
    assert forecast().exit_code == 2
    assert forecast("unknown").exit_code == 2
