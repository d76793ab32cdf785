"""A policy's folder may include folders next to it."""

from pathlib import Path

import pytest

from orchestrator.config.policy_manifest import ManifestError, load

MANIFEST = """
name: mine
environment: this
train: [python, train.py]
serve: [python, serve.py]
include: [../shared]
data: lerobot_v3
"""


def _make(root: Path) -> Path:
    (root / "mine").mkdir()
    (root / "shared").mkdir()
    (root / "shared/loop.py").write_text("STEPS = 1\n")
    (root / "mine/policy.yaml").write_text(MANIFEST)
    for name in ("train.py", "serve.py"):
        (root / "mine" / name).write_text("from shared.loop import STEPS\n")
    return root / "mine"


def test_included_programs_are_part_of_the_policy_and_of_its_fingerprint(tmp_path: Path) -> None:
    policy = load(_make(tmp_path))
    assert policy.files["shared/loop.py"] == b"STEPS = 1\n"
    (tmp_path / "shared/loop.py").write_text("STEPS = 2\n")
    assert load(tmp_path / "mine").fingerprint() != policy.fingerprint()
    written = tmp_path / "written"
    written.mkdir()
    policy.write(written)
    assert (written / "shared/loop.py").read_text() == "STEPS = 1\n"


@pytest.mark.parametrize("path", ["shared", "../../shared", "/shared", "../none"])
def test_only_folders_next_to_the_policy_are_included(tmp_path: Path, path: str) -> None:
    folder = _make(tmp_path)
    (folder / "policy.yaml").write_text(MANIFEST.replace("../shared", path))
    with pytest.raises(ManifestError, match="include"):
        load(folder)
