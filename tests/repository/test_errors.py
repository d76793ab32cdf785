"""Errors that a user can fix: one base class, one message, an exit code."""

import ast
import pickle
import re
from pathlib import Path

import pytest
from conftest import CHECKOUT

import policy.errors
from orchestrator.config.sweep_config import SweepConfig, SweepError
from policy.errors import DemoscaleError

PACKAGES = ("jobs", "orchestrator", "policy", "sim_workers")


def test_errors_docstring_tree_equals_the_code() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +([\w.]+)", policy.errors.__doc__ or ""))
    found = {}
    for package in PACKAGES:
        for file in (CHECKOUT / package).rglob("*.py"):
            source = file.read_bytes()
            for node in ast.walk(ast.parse(source)) if b"DemoscaleError" in source else ():
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(base, ast.Name) and base.id == "DemoscaleError" for base in node.bases
                ):
                    found[node.name] = ".".join(file.relative_to(CHECKOUT).with_suffix("").parts)
    assert drawn == found


def test_error_with_a_hint_prints_it_on_its_own_line_and_is_picklable() -> None:
    error = DemoscaleError("the store is empty", "record demonstrations with demoscale collect")
    again = pickle.loads(pickle.dumps(error))
    assert (
        (again.message, again.hint)
        == (error.message, error.hint)
        == ("the store is empty", "record demonstrations with demoscale collect")
    )
    assert str(again) == "the store is empty\nrecord demonstrations with demoscale collect"
    assert (str(DemoscaleError("alone")), DemoscaleError("alone").hint, DemoscaleError.exit_code) == (
        "alone",
        "",
        1,
    )


def test_sweep_file_with_wrong_fields_lists_all_of_them(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("""
name: Capital
data: {episodes: nowhere, demo_count: {low: 2, high: 8}, action_free_ratio: [0, 1]}
train: {steps: 10, checkpoint_every: 5, videos: sweep, unknown: 1}
suite: {tasks: [Lift], episodes: 4, horizon: 50}
attempts: 0
""")
    with pytest.raises(SweepError) as raised:
        SweepConfig.load(file)
    problems = "\n".join(raised.value.problems)
    assert re.search(r"^name: ", problems, re.MULTILINE)
    assert "train.unknown: unknown field" in problems
    assert re.search(r"^attempts: ", problems, re.MULTILINE)
    assert "data.demo_count: a range asks for search" in problems
    assert "data.episodes: " in problems
    file.write_text(
        file.read_text().replace(", unknown: 1", "").replace("Capital", "small").replace("attempts: 0", "")
    )
    with pytest.raises(SweepError) as raised:
        SweepConfig.load(file)
    assert [problem.partition(":")[0] for problem in raised.value.problems[:2]] == [
        "data.demo_count",
        "train.videos",
    ]
    assert raised.value.exit_code == 2
