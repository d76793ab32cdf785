"""The import command: values and options that are refused, and exit codes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from lerobot_datasets import Dataset, imported, numbered, write_film
from orchestrator.cli.main import main
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source


@pytest.mark.parametrize(
    "option", [["--hz", "nan"], ["--image-size", "²"], ["--cameras", "a=x,a=y"], ["--proprio", "a,,b"]]
)
def test_import_refuses_values_that_are_none(tmp_path: Path, option: list[str]) -> None:
    done = CliRunner().invoke(main, ["import", str(tmp_path), str(tmp_path / "store"), *option])
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (2, True)
    assert f"Invalid value for '{option[0]}'" in done.stderr


def test_import_without_a_usable_episode_is_an_error(tmp_path: Path) -> None:
    def short(episode: int, columns: dict[str, Any]) -> dict[str, Any]:
        return columns | {"action": pa.array([[0.0] * 6] * len(columns["action"]), pa.list_(pa.float32()))}

    root = Dataset(row=short).write(tmp_path / "data")
    done = CliRunner().invoke(main, ["import", str(root), str(tmp_path / "store")])
    assert done.exit_code == 2
    assert "it has 6 action values, the others 7; left out" in done.stdout
    assert done.stderr == f"{root}: no episode can be imported: all 3 are left out\n"


def test_import_of_what_is_there_but_for_episodes_left_out_says_so(tmp_path: Path) -> None:
    def odd(episode: int, columns: dict[str, Any]) -> dict[str, Any]:
        return columns | ({"action": columns["observation.state"]} if episode == 1 else {})

    root = Dataset(row=odd).write(tmp_path / "data")
    imported(root, tmp_path / "store")
    done = CliRunner().invoke(main, ["import", str(root), str(tmp_path / "store")])
    assert (done.exit_code, "0 episodes to import, 2 already there" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"action_free": True, "deltas": False}, "--absolute cannot be applied to episodes without actions"),
        ({"action_free": True, "arm_only": True}, "--arm-only cannot be applied to episodes without actions"),
        ({"action_free": True, "action": "x"}, "--action cannot be applied to episodes without actions"),
        ({"deltas": True}, "--deltas cannot be applied to actions that do not say what they are (action_0,"),
        ({"deltas": False}, "--absolute cannot be applied to actions that do not say what they are"),
    ],
)
def test_import_refuses_options_without_effect(tmp_path: Path, said: dict[str, Any], sentence: str) -> None:
    root = Dataset().write(tmp_path / "data")
    with pytest.raises(SourceError) as error:
        open_source(root, ImportOptions(**said))
    assert sentence in str(error.value)


def test_film_import_refuses_absolute_actions(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", numbered(range(3)), 10)
    with pytest.raises(SourceError, match="--absolute cannot be applied to films; leave it out"):
        open_source(tmp_path, ImportOptions(cameras={"f": "f"}, deltas=False))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "x/info.json"), "x/info.json: this user may not read it;"),
        (OSError(116, "Stale file handle", "x/info.json"), "x/info.json: it cannot be read (Stale file"),
    ],
)
def test_import_of_what_the_system_refuses_to_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, sentence: str
) -> None:
    def refuse(path: Path) -> None:
        raise error

    root = Dataset().write(tmp_path / "data")
    monkeypatch.setattr("orchestrator.data.importers.lerobot.refuse_pointer", refuse)
    with pytest.raises(SourceError) as raised:
        open_source(root, ImportOptions())
    assert sentence in str(raised.value)
