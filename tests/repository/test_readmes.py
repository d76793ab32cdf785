"""Code in the packages' READMEs runs, and links between Markdown files lead somewhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT

from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.testing.checkpoints import make_checkpoint

LINK = re.compile(r"\]\(([^)#]+)[^)]*\)", re.DOTALL)


def block(readme: str, contains: str) -> str:
    """Return the Python block of a README that contains a text."""
    (found,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", (CHECKOUT / readme).read_text(), re.DOTALL)
        if contains in code
    ]
    return found


def ran(readme: str, contains: str, **names: Any) -> dict[str, Any]:
    """Run a block with the names and return its names."""
    exec(compile(block(readme, contains), readme, "exec"), names)
    return names


def test_links_of_markdown_files_lead_to_files() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    broken = [
        (name, link)
        for name in listed.stdout.split()
        for link in LINK.findall((CHECKOUT / name).read_text())
        if "://" not in link and not (CHECKOUT / Path(name).parent / link).exists()
    ]
    assert broken == []


def test_design_index_lists_every_note() -> None:
    folder = CHECKOUT / "docs/design"
    notes = {path.name for path in folder.glob("0*.md")}
    assert notes == set(LINK.findall((folder / "README.md").read_text()))


def test_files_named_in_design_notes_exist() -> None:
    """Names with a folder are relative to the checkout."""
    named = {
        (note.name, name)
        for note in (CHECKOUT / "docs/design").glob("0*.md")
        for name in re.findall(r"`((?:\w+/)+[\w./]+)`", note.read_text())
        if name.partition("/")[0] in {path.name for path in CHECKOUT.iterdir() if path.is_dir()}
    }
    assert len(named) > 60
    assert [pair for pair in sorted(named) if not (CHECKOUT / pair[1]).exists()] == []


def test_policy_readme_checkpoint_acts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    ran("policy/README.md", "TrainedPolicy", folder=folder)
    assert re.match(r"\(\d+, 7\) \d+\n", capsys.readouterr().out)


@pytest.mark.sim
def test_sim_workers_readme_environment_steps() -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("sim_workers/README.md", "SimEnv")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(64, 64, 3) False\n", done.stderr


@pytest.mark.sim
@pytest.mark.full
@pytest.mark.ray
def test_sim_workers_readme_pool_plays_every_episode(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ran("sim_workers/README.md", "RolloutPool")
    names["pool"].close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert {line.split()[0] for line in lines} <= {"success", "failure"}


@pytest.mark.full
@pytest.mark.ray
def test_orchestrator_readme_plug_in_sweep_has_a_curve(ray_cluster: None) -> None:
    curve = ran("orchestrator/README.md", "FakeEvalBackend")["curve"]
    assert isinstance(curve, Curve)
    assert [arm.episodes for arm in curve.arms] == [20, 20]


def test_version_is_the_same_in_changelog_citation_and_package() -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[([\d.]+)\] - (\d\S+)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == version
    citation = (CHECKOUT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\ndate-released: {newest[2]}\n" in citation
