"""Every code block of docs/ is run or checked, by its language; messages and paths that pages quote exist."""

import io
import json
import re
import sys
import tomllib
from contextlib import redirect_stdout
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import CHECKOUT

from documentation import DOCS, Block, blocks
from orchestrator.cli.docs import command_pages
from orchestrator.cli.main import main
from orchestrator.config.policy_manifest import PolicyManifest
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.testing.episodes import CONTRACT
from policy.interface import Contract

BLOCKS = blocks()
LANGUAGES = {"sh", "python", "yaml", "toml", "json", "text"}
NOT_HERE = {
    ".": "activates an environment",
    "cd": "is the shell's",
    "aws": "needs an account of AWS",
    "duckdb": "another program; the files that it reads are those of tests/evaluation/test_outcome_ledger.py",
    "git": "clones a repository",
    "kubectl": "needs a Kubernetes cluster",
    "mlflow": "serves until Ctrl-C; tests/tracking/test_mlflow_server.py starts it",
    "pip": "installs packages",
    "pytest": "runs tests",
    "ray": "needs an account of AWS",
    "sbatch": "needs SLURM; tests/deploy/test_slurm.py runs deploy/slurm.sh",
}
"""Programs of shell blocks that no test here runs, with the reason. Files that they are given must exist."""
A_FILE = re.compile(r"(deploy|jobs|examples|tests|constraints)[\w/.-]*\.\w+$")
SWEEP = {
    "name": "page",
    "data": {"episodes": "data/lift", "demo_count": [2]},
    "train": {"steps": 9, "batch_size": 32, "checkpoint_every": 3},
    "suite": {"tasks": ["Lift"], "episodes": 20, "horizon": 50},
}
"""Sweep file that parts of one are put into."""
OF_A_PACKAGE = ("policy: my_policy", "policy: diffusion_policy")
"""A policy of an installed package in pages, and what stands for it here."""
ROOTS = ("orchestrator", "policy", "sim_workers")


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def each(found: list[Block]) -> Any:
    return pytest.mark.parametrize("block", found, ids=str)


def test_blocks_name_a_language_that_is_checked() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert len(of("sh")) > 25
    assert len(of("python")) > 10


def test_shell_blocks_name_programs_modules_targets_and_files_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for block in of("sh"):
        for words in block.commands():
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            program, arguments = words[0], words[1:]
            if program == "demoscale":  # tests/cli/test_documented_commands.py parses the options
                known = bool(arguments) and arguments[0] in main.commands
            elif program == "make":
                known = {one for one in arguments if "=" not in one} <= targets
            elif program == "python":
                known = arguments[0] == "-m" and find_spec(arguments[1]) is not None
            else:
                known = program in NOT_HERE
            files = [word.rpartition("=")[2] for word in arguments]
            missing = [name for name in files if A_FILE.match(name) and not (CHECKOUT / name).exists()]
            if not known or missing:
                wrong.append(f"{block}: {' '.join(words)} {missing}")
    assert wrong == []


@each(of("yaml"))
def test_yaml_block_is_a_sweep_file_or_a_manifest_with_known_fields(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)  # where the folders of its policies are
    raw = yaml.safe_load(block.text.replace(*OF_A_PACKAGE))
    if "environment" in raw:
        PolicyManifest.model_validate(raw)
        return
    whole: dict[str, Any] = {}
    for name in {*SWEEP, *raw}:
        ours, its = SWEEP.get(name, {}), raw.get(name, {})
        whole[name] = {**ours, **its} if isinstance(ours, dict) and isinstance(its, dict) else its or ours
    if "seconds" in whole["train"]:
        del whole["train"]["steps"]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(whole))
    assert SweepConfig.load(file).name == whole["name"]


@each([*of("json"), *of("toml")])
def test_data_block_can_be_read(block: Block) -> None:
    if block.language == "toml":
        assert tomllib.loads(block.text)
    else:
        read = json.JSONDecoder().raw_decode
        rest = block.text.strip()
        while rest:
            _, end = read(rest)
            rest = rest[end:].strip()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the policies that a block would serve."""
    job = {"contract": CONTRACT.to_json(), "host": "127.0.0.1", "port": 8000}
    (tmp_path / "serve.json").write_text(json.dumps(job))
    monkeypatch.setenv("DEMOSCALE_SERVE", str(tmp_path / "serve.json"))
    policies: list[Any] = []
    monkeypatch.setattr("policy.http_server.serve", lambda policy, *_place: policies.append(policy))
    return policies


@each(of("python"))
def test_python_block_runs_and_prints_what_the_page_says(
    block: Block, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(block.text, str(block), "exec")
    if block.not_run:
        named = re.findall(r"\btests/\S+\.py\b", block.not_run)
        assert named
        assert all((CHECKOUT / name).exists() for name in named)
        return
    monkeypatch.chdir(CHECKOUT)
    names: dict[str, Any] = {"contract": CONTRACT, "initial_state": list, "step": lambda state, seen: ()}
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    following = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    if following and following[0].language == "text" and following[0].adjoins:
        assert printed.getvalue() == following[0].text
    elif "json.dumps(contract(" in block.text:
        assert Contract.from_json(json.loads(printed.getvalue())).image_size == (224, 224)
    else:
        assert printed.getvalue() == ""
    assert [policy.contract for policy in served] == [CONTRACT] * ("serve(" in block.text)


def test_documented_python_blocks_that_are_not_run_are_few() -> None:
    assert len([block for block in of("python") if block.not_run]) <= 2


def source_with_joined_strings() -> str:
    """Return the source of the packages in which texts that go on in the next line are one."""
    sources = (file.read_text() for root in ROOTS for file in (CHECKOUT / root).rglob("*.py"))
    return re.sub(r'"\n *f?"', "", "".join(sources))


def test_messages_of_the_troubleshooting_page_are_in_the_source() -> None:
    source = source_with_joined_strings()
    quoted = [block for block in BLOCKS if block.page == "troubleshooting.md" and block.language == "text"]
    assert len(quoted) > 40
    missing = []
    for block in quoted:
        parts = [part.strip(" \n:;,.()") for part in re.split(r"<[^>]+>", block.text)]
        known = [part for part in parts if len(part) > 3]
        assert known, block
        missing += [f"{block}: {part}" for part in known if part not in source]
    assert missing == []


def test_paths_that_pages_name_exist() -> None:
    roots = {path.name for path in CHECKOUT.iterdir() if path.is_dir()} - {"data", "runs", "site"}
    named = {
        (page.relative_to(DOCS).as_posix(), name)
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"`((?:\w+/)+[\w./-]+\.\w+)(?:::\w+)?`", page.read_text())
        if name.partition("/")[0] in roots
    }
    assert len(named) > 100
    assert [pair for pair in sorted(named) if not (CHECKOUT / pair[1]).exists()] == []


def test_command_pages_have_every_command_and_option() -> None:
    pages = {page.name: page.markdown for page in command_pages()}
    assert set(pages) == {"index", *main.commands}
    assert "| `--libero-reset" in pages["score"]
    assert "\n## demoscale data check\n" in pages["data"]
    assert "\ndemoscale plan jobs/quickstart.yaml --power 0.1\n" in pages["plan"]
    assert all(f"[`demoscale {name}`]({name}.md)" in pages["index"] for name in main.commands)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """Return docs/hooks.py, which mkdocs loads by its path."""
    spec = spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_site_links_of_pages_outside_docs_lead_to_pages_of_the_site(hooks: ModuleType) -> None:
    page = (
        "[a](../README.md#limits) [b](data.md) [c](../jobs/quickstart.yaml) `[d](../x.md)` [e](https://x.org)"
    )
    assert hooks.rewritten(page, "start.md") == (
        "[a](repository/README.md#limits) [b](data.md) [c](repository/jobs/quickstart.yaml.md) `[d](../x.md)`"
        " [e](https://x.org)"
    )
    assert hooks.rewritten("[a](../docs/data.md)", "repository/jobs/README.md") == "[a](../../data.md)"
    assert hooks.rewritten("```\n[a](../README.md)\n```", "start.md") == "```\n[a](../README.md)\n```"


def test_site_has_the_files_that_linked_files_link_to(hooks: ModuleType) -> None:
    found = hooks.linked(
        [("docs/start.md", "[a](../README.md)"), ("docs/lines.md", "[b](../policies/README.md)")]
    )
    assert {"jobs/README.md", "policies/README.md", "policies/lerobot_act/README.md"} <= found
    assert not {name for name in found if name.startswith("docs/")}
    assert hooks.content("jobs/quickstart.yaml").startswith(
        "---\nsearch: {exclude: true}\n---\n# jobs/quickstart"
    )
