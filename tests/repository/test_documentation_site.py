"""The documentation site builds strictly, quickly, and loads nothing from a network."""

import re
import resource
from pathlib import Path

import pytest
from conftest import run

from orchestrator.cli.main import main

LONGEST_S = 60.0
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b(?![^>]*canonical)[^>]*href=\"?(?:https?:)?//"
)


@pytest.mark.docs
def test_site_builds_strictly_within_a_minute_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # CPU seconds: this machine runs other tests meanwhile
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LONGEST_S

    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {f"commands/{name}.html" for name in main.commands} <= set(pages)
    for name, text in pages.items():
        assert not LOADED.search(text), name
    assert not [css.name for css in tmp_path.rglob("*.css") if re.search(r"url\(\W?https?:", css.read_text())]
    reference = pages["reference/policies.html"]
    assert 'id="policy.learner.Learner.sample"' in reference
    assert "noise_seeds" in reference
