"""The JSON of a curve's report, which `demoscale curve --json`, `Curve.save` and MLflow hold."""

import json
import re
from pathlib import Path

from click.testing import CliRunner

import synthetic_reports
from orchestrator.cli.main import main
from orchestrator.report import held_out_curve
from synthetic_curves import whole

STORED = Path(__file__).with_name("whole_curve.json")
"""JSON of `synthetic_curves.whole`."""


def rounded(text: str) -> str:
    """Return a text with ten digits of every decimal: the last ones differ between processors."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.10g}", text)


def test_report_json_equals_the_stored_file(tmp_path: Path) -> None:
    curve = whole()
    curve.save(tmp_path / "curve.json")
    saved = (tmp_path / "curve.json").read_text()
    assert rounded(saved) == rounded(STORED.read_text())
    assert saved == json.dumps(curve.to_json(), indent=1) == json.dumps(curve.report().to_json(), indent=1)


def test_curve_command_prints_the_saved_json(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(held_out_curve, "read_curve", lambda *_: whole())
    done = CliRunner().invoke(
        main, ["curve", "whole", "--storage", str(tmp_path), "--json"], catch_exceptions=False
    )
    assert rounded(done.stdout) == rounded(STORED.read_text() + "\n")


def test_report_json_has_null_for_unbounded_numbers() -> None:
    reached, not_reached = (synthetic_reports.rich().lines[place].reach[1].to_json() for place in (0, 2))
    assert (reached["demos"], reached["low"], reached["high"]) == (196.0, 140, 290)
    assert (not_reached["demos"], not_reached["low"], not_reached["high"]) == (None, 240.0, None)
