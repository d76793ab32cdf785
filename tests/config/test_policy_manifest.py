"""The manifest of an external policy: mistakes by file and field, and the fingerprint of its meaning."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from external_policies import make_policy
from orchestrator.config.policy_manifest import ManifestError, Wants, load
from orchestrator.testing.episodes import CONTRACT

RIGHT = """
name: act
environment: {python: "3.12", requirements: [numpy]}
train: [python, train.py]
serve: [python, serve.py]
data: lerobot_v3
"""


def problems(folder: Path, text: str) -> list[str]:
    make_policy(folder)
    (folder / "policy.yaml").write_text(text)
    with pytest.raises(ManifestError) as raised:
        load(folder)
    assert str(raised.value).startswith(f"{folder}/policy.yaml: ")
    return raised.value.problems


def test_every_mistake_is_named_with_its_field(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
name: a b
environment: {python: 3.12, requirments: [x]}
train: python
data: lerobot
wants: {camera: 3}
understands: [batchsize]
""",
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "name",
        "environment.python",
        "environment.requirements",
        "environment.requirments",
        "train",
        "serve",
        "data",
        "wants.camera",
        "understands",
    ]
    assert "environment.requirments: unknown field; did you mean requirements?" in found
    assert "understands: unknown knob batchsize; did you mean batch_size?" in found
    assert 'environment.python: write the version in quotes: "3.12"' in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.py]", "train: there is no file trains.py in the folder"),
        ("[numpy]", "environment.requirements: there is no file needs.txt in the folder"),
        ("[numpy]}", r"environment.requirements: '--index-url http://x' is no requirement"),
        ('{python: "3.12", requirements: [numpy]}', "environment: write this, {python:"),
        ("name: act", "name: missing"),
        ("data: lerobot_v3", r"not readable as YAML: .*line"),
    ],
)
def test_mistake_is_one_sentence(change: str, said: str, tmp_path: Path) -> None:
    wrong = {
        "train.py]": "trains.py]",
        "[numpy]": "needs.txt",
        "[numpy]}": '["--index-url http://x"]}',
        '{python: "3.12", requirements: [numpy]}': "conda",
        "name: act": "",
        "data: lerobot_v3": "data: [",
    }[change]
    (problem,) = problems(tmp_path, RIGHT.replace(change, wrong))
    assert re.match(said, problem), problem


def test_credentials_are_refused_and_not_repeated(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, RIGHT + "options: {wandb_api_key: hunter2secret}\n")
    assert "there are credentials in options.wandb_api_key" in problem
    assert "hunter2secret" not in problem


def test_folder_without_a_manifest_and_links_out_of_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"it has no policy\.yaml"):
        load(tmp_path)
    make_policy(tmp_path / "a")
    (tmp_path / "a" / "weights").symlink_to("/etc/passwd")
    with pytest.raises(ManifestError, match="weights is a link out of the folder"):
        load(tmp_path / "a")


def test_fingerprint_is_that_of_what_shapes_the_training(tmp_path: Path) -> None:
    folder = make_policy(tmp_path / "a")
    manifest = folder / "policy.yaml"
    first = load(folder).fingerprint()
    manifest.write_text(f"# a comment\n{manifest.read_text()}\ndescription: does it\ntested: false\n")
    (folder / "README.md").write_text("more")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "train.pyc").write_text("more")
    assert load(folder).fingerprint() == first
    changed = {load(folder).fingerprint("numpy==2.4.0")}
    (folder / "train.py").write_text("pass")
    changed.add(load(folder).fingerprint())
    manifest.write_text(manifest.read_text().replace("rate: 0.5", "rate: 0.6"))
    changed.add(load(folder).fingerprint())
    assert len({first, *changed}) == 4
    (tmp_path / "copy").mkdir()
    load(folder).write(tmp_path / "copy")
    assert load(tmp_path / "copy", copied=True).fingerprint() == load(folder).fingerprint()


def test_options_of_a_line_replace_the_defaults(tmp_path: Path) -> None:
    manifest = load(make_policy(tmp_path)).manifest
    assert manifest.with_options({"rate": 2}) == {"rate": 2}
    with pytest.raises(ValueError, match=r"options\.rat: counter has no such option; did you mean rate\?"):
        manifest.with_options({"rat": 2})
    with pytest.raises(ValueError, match=r"options\.rate: .* is no number, text, truth value or list"):
        manifest.with_options({"rate": {"a": 1}})


def test_knobs_that_the_policy_does_not_follow_are_listed(tmp_path: Path) -> None:
    manifest = load(make_policy(tmp_path)).manifest
    assert manifest.ignored(["steps", "batch_size", "learning_rate", "seed", "precision"]) == [
        "learning_rate",
        "precision",
    ]


def test_wants_are_compared_with_the_episodes(tmp_path: Path) -> None:
    two_arms = replace(CONTRACT, action=("robot0_x", "robot1_x"), proprio=())
    assert Wants().problems(CONTRACT) == []
    assert Wants(cameras=1, proprio="required", single_arm=True).problems(CONTRACT) == []
    assert Wants(cameras=2, proprio="required", single_arm=True).problems(two_arms) == [
        "it takes 2 cameras, the episodes have 1 (robot0_eye_in_hand)",
        "it takes proprioception, and the episodes have none",
        "it acts with one arm, the actions are of 2",
    ]
