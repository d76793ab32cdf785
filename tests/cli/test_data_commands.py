"""`demoscale data`: tables, JSON lines, summaries and verification of episode stores."""

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import CHECKOUT, run
from matplotlib.image import imread

from imported_packages import HEAVY, imported_packages
from orchestrator.cli.main import main
from orchestrator.data.episode_format import Episode
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.store_summary import grouped
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode

FOLDER_AND_S3 = pytest.mark.parametrize("storage", ["folder", "moto"], indirect=True)
TITLES = ["episode", "task", "frames", "seconds", "kind", "success", "KiB", "cameras", "source"]


def ask(*arguments: str) -> Result:
    """Run `demoscale data ...`, piped."""
    result = CliRunner().invoke(main, ["data", *arguments], catch_exceptions=False)
    assert "\x1b" not in result.stdout
    return result


def tsv(text: str) -> list[dict[str, str]]:
    """Return the rows as mappings from title to cell."""
    titles, *rows = [line.split("\t") for line in text.splitlines()]
    assert all(len(row) == len(titles) for row in rows)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def fill(storage: Storage, episodes: Iterable[Episode], note: str = "") -> list[EpisodeEntry]:
    """Commit the episodes as one version and return their entries."""
    entries = [put_episode(storage, one, 20.0) for one in episodes]
    commit(storage, CONTRACT, entries, note)
    return entries


def fill_many(storage: Storage, count: int) -> None:
    """Commit one episode under many names."""
    entry = put_episode(storage, make_episode(), 20.0)
    commit(storage, CONTRACT, [replace(entry, episode_id=f"Lift-{i:06d}") for i in range(count)])


def mixed() -> list[Episode]:
    """Return episodes of two tasks, lengths 10 to 15, every fourth without actions, success in all its three
    values.
    """
    episodes = [
        replace(
            make_episode(seed, 10 + seed, labelled=seed != 3),
            success=(True, False, None)[seed % 3],
            source=f"expert, seed {seed}, disturbance 0.3",
        )
        for seed in range(6)
    ]
    return [
        *episodes[:4],
        *(
            replace(e, episode_id=f"Stack-{i}", task="Stack", instruction="stack them")
            for i, e in enumerate(episodes[4:])
        ),
    ]


def flip(storage: Storage, key: str) -> None:
    """Flip one bit in the middle of an object."""
    data = bytearray(storage.get(key))
    data[len(data) // 2] ^= 1
    storage.put(key, bytes(data))


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


# -- ls ------------------------------------------------------------------------------------------------------


@FOLDER_AND_S3
def test_data_ls_piped_prints_a_tab_separated_row_per_episode(storage: Storage) -> None:
    entries = fill(storage, mixed())
    result = ask("ls", storage.uri)
    assert result.exit_code == 0
    rows = tsv(result.stdout)
    assert list(rows[0]) == TITLES
    assert [row["episode"] for row in rows] == sorted(entry.episode_id for entry in entries)
    assert [row["success"] for row in rows[:4]] == ["yes", "no", "unknown", "yes"]
    assert [row["kind"] for row in rows[:4]] == ["labelled", "labelled", "labelled", "action-free"]
    assert (rows[1]["frames"], rows[1]["seconds"]) == ("11", "0.55")
    assert float(rows[1]["KiB"]) == pytest.approx(entries[1].nbytes / 1024, abs=0.06)
    assert rows[1]["source"] == "expert, seed 1, disturbance 0.3"


def test_data_ls_strips_control_characters_from_names(folder: Storage) -> None:
    fill(folder, [replace(make_episode(), task="Li\tft", source="one\ntwo\x1b[31m [bold]three")])
    (row,) = tsv(ask("ls", folder.uri).stdout)
    assert (row["task"], row["source"]) == ("Li ft", "one two [31m [bold]three")
    assert "one two [31m [bold]three" in ask("show", folder.uri).stdout


def test_data_ls_filters_by_task_version_and_limit(folder: Storage) -> None:
    first, *others = mixed()
    fill(folder, [first])
    fill(folder, others)
    assert {row["task"] for row in tsv(ask("ls", folder.uri, "--task", "Stack").stdout)} == {"Stack"}
    assert [row["episode"] for row in tsv(ask("ls", folder.uri, "--version", "1").stdout)] == [
        first.episode_id
    ]
    assert len(tsv(ask("ls", folder.uri, "--limit", "2").stdout)) == 2


def test_data_ls_json_prints_exact_values_per_line(folder: Storage) -> None:
    entries = fill(folder, mixed())
    lines = [json.loads(line) for line in ask("ls", folder.uri, "--json").stdout.splitlines()]
    assert [line["nbytes"] for line in lines] == [entry.nbytes for entry in entries]
    assert [line["success"] for line in lines] == [True, False, None, True, False, None]
    assert lines[1]["seconds"] == 11 / 20.0


def test_data_ls_piped_prints_all_rows_and_tolerates_a_closed_pipe(folder: Storage) -> None:
    fill_many(folder, 3000)
    assert len(tsv(ask("ls", folder.uri).stdout)) == 3000
    command = [sys.executable, "-m", "orchestrator", "data", "ls", folder.uri]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().split(b"\t")[0] == b"episode"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()


@pytest.mark.parametrize("columns", [100, 160])
def test_data_ls_on_a_terminal_fits_the_width_and_counts_the_rest(folder: Storage, columns: int) -> None:
    fill_many(folder, 60)
    screen, slave = pty.openpty()
    command = [sys.executable, "-m", "orchestrator", "data", "ls", folder.uri]
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=slave, env=os.environ | {"COLUMNS": str(columns)}
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):  # how a terminal reports that its writer has ended
        while some := os.read(screen, 65536):
            shown += some
    os.close(screen)
    assert process.wait() == 0
    head, *rows, last = shown.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert head.split() == TITLES
    assert len(rows) == 50
    assert rows[0].startswith("Lift-000000  Lift ")
    assert max(map(len, rows)) <= columns
    assert last == "… and 10 more; --limit 60 shows all"


# -- show ----------------------------------------------------------------------------------------------------


@FOLDER_AND_S3
def test_data_show_json_summarises_the_store(storage: Storage) -> None:
    episodes = mixed()
    for one in episodes:
        if one.action is not None:
            one.action[:, 3] = 0.25
    entries = fill(storage, episodes, "a test")
    said = json.loads(ask("show", storage.uri, "--json").stdout)
    assert (said["version"], said["note"], said["fingerprint"]) == (
        1,
        "a test",
        load_manifest(storage).fingerprint,
    )
    assert (said["episodes"], said["labelled"], said["action_free"]) == (6, 5, 1)
    assert said["nbytes"] == sum(entry.nbytes for entry in entries)
    assert said["contract"]["action"] == list(CONTRACT.action)
    counts = {
        task["task"]: [
            task[name] for name in ("episodes", "labelled", "succeeded", "failed", "unknown", "frames")
        ]
        for task in said["tasks"]
    }
    assert counts == {"Lift": [4, 3, 2, 1, 1, 46], "Stack": [2, 2, 0, 1, 1, 29]}
    lengths = said["lengths"]
    assert (lengths["low"], lengths["median"], lengths["high"], lengths["total"]) == (10, 12.5, 15, 75)
    assert sum(count for _, _, count in lengths["histogram"]) == 6
    assert said["sources"] == [["expert, seed 0..5, disturbance 0.3", 6]]
    for kind in ("action", "proprio"):
        everything = np.concatenate([getattr(one, kind) for one in episodes if one.action is not None])
        dims = said["statistics"][kind]
        assert [dim["name"] for dim in dims] == list(getattr(CONTRACT, kind))
        for name, of in (("low", np.min), ("mean", np.mean), ("std", np.std), ("high", np.max)):
            assert np.allclose([dim[name] for dim in dims], of(everything.astype(float), axis=0)), (
                kind,
                name,
            )
    assert [dim["constant"] for dim in said["statistics"]["action"]] == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]


def test_data_show_text_has_the_numbers_of_the_json(folder: Storage) -> None:
    fill(folder, mixed(), "a test")
    text = ask("show", folder.uri).stdout
    words = [" ".join(line.split()) for line in text.splitlines()]
    assert "episodes 6: 5 labelled, 1 action-free" in words
    assert "frames 75, 3.8 s" in words
    assert "Stack stack them 2 2 0 0 1 1 29" in words
    assert "shortest 10 0.50" in words
    assert "6 expert, seed 0..5, disturbance 0.3" in words
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_data_show_of_action_free_episodes_has_no_statistics(folder: Storage) -> None:
    fill(folder, [replace(make_episode(labelled=False), proprio=None)])
    assert json.loads(ask("show", folder.uri, "--json").stdout)["statistics"] == {"action": [], "proprio": []}
    assert "0 labelled, 1 action-free" in ask("show", folder.uri).stdout
    assert "instruction" in ask("show", folder.uri, "Lift-000000").stdout


def test_data_show_of_one_episode_has_its_statistics(folder: Storage) -> None:
    episodes = mixed()
    fill(folder, episodes)
    said = json.loads(ask("show", folder.uri, "Lift-000001", "--json").stdout)
    assert (said["episode_id"], said["length"], said["success"]) == ("Lift-000001", 11, False)
    assert episodes[1].action is not None
    assert [dim["high"] for dim in said["statistics"]["action"]] == episodes[1].action.max(0).astype(
        float
    ).tolist()
    assert "frames       11\n" in ask("show", folder.uri, "Lift-000001").stdout


@FOLDER_AND_S3
def test_data_show_sheet_has_the_first_frames(storage: Storage, tmp_path: Path) -> None:
    colours = {"Lift-000000": (200, 0, 0), "Lift-000001": (0, 0, 200)}
    episodes = [
        replace(e, frames={name: np.zeros_like(f) for name, f in e.frames.items()})
        for e in (make_episode(0), make_episode(1))
    ]
    for one in episodes:
        for frames in one.frames.values():
            frames[0] = colours[one.episode_id]
    fill(storage, episodes)
    sheet = tmp_path / "sheet.png"
    result = ask("show", storage.uri, "--sheet", str(sheet))
    assert result.stdout.splitlines()[-1] == f"first frames of 2 episodes: {sheet}"
    picture = np.rint(imread(io.BytesIO(sheet.read_bytes()), format="png")[..., :3] * 255)
    height, width = picture.shape[:2]
    seen = picture[height // 2, width // 4], picture[height // 2, 3 * width // 4]
    assert np.allclose(seen, list(colours.values()), atol=12)


def test_data_show_sheet_of_a_large_store_has_sixty_episodes(folder: Storage, tmp_path: Path) -> None:
    fill_many(folder, 200)
    result = ask("show", folder.uri, "--json", "--sheet", str(tmp_path / "sheet.png"))
    assert json.loads(result.stdout)["episodes"] == 200
    assert "first frames of 60 episodes" in result.stderr


def test_grouped_sources_merge_those_that_differ_in_numbers() -> None:
    sources = {f"a.hdf5, data/demo_{i}, 84x84 at 20 Hz": 1 for i in (2, 10, 9)} | {"film b.mp4": 4}
    assert grouped(sources) == [("film b.mp4", 4), ("a.hdf5, data/demo_2..10, 84x84 at 20 Hz", 3)]


# -- verify --------------------------------------------------------------------------------------------------


@FOLDER_AND_S3
def test_data_verify_names_and_counts_every_bad_episode(storage: Storage) -> None:
    entries = fill(storage, (make_episode(seed) for seed in range(5)))
    whole = ask("verify", storage.uri)
    assert (whole.exit_code, whole.stdout.count("\n")) == (0, 1)
    assert whole.stdout.startswith("read 5 episodes of version 1, ")
    assert whole.stdout.endswith(" and 1 version: no damage found\n")
    lost = replace(entries[0], episode_id="Lift-000009", key="objects/00/lost.parquet")
    commit(storage, CONTRACT, [lost])
    flip(storage, entries[1].key)
    storage.put(entries[3].key, storage.get(entries[3].key)[:-7])
    result = ask("verify", storage.uri)
    assert result.exit_code == 1
    one, two, three, last = result.stdout.splitlines()
    assert one == f"{storage.uri}: episode Lift-000001 is damaged; restore {entries[1].key}"
    assert two.startswith(
        f"{storage.uri}: episode Lift-000003 is cut short, {entries[3].nbytes - 7} of {entries[3].nbytes}"
        " bytes; restore"
    )
    assert three == f"{storage.uri}: episode Lift-000009 is missing; restore objects/00/lost.parquet"
    assert last.startswith("read 6 episodes of version 2, ")
    assert last.endswith("and 2 versions: 3 bad episodes, 0 bad versions")
    assert (
        ask("verify", storage.uri, "--version", "1")
        .stdout.splitlines()[-1]
        .endswith("2 bad episodes, 0 bad versions")
    )


def test_data_verify_checks_every_version(folder: Storage) -> None:
    for seed in range(4):
        fill(folder, [make_episode(seed)])
    flip(folder, f"manifests/{load_manifest(folder, 1).sha256}.parquet")
    folder.put("versions/000002.json", folder.get("versions/000002.json")[:-9])
    Path(folder.uri, "versions/000003.json").unlink()
    result = ask("verify", folder.uri)
    assert result.exit_code == 1
    one, two, three, last = result.stdout.splitlines()
    assert "the manifest of version 1 is damaged; restore manifests/" in one
    assert "version 2 of the store is damaged; restore versions/000002.json" in two
    assert "version 3 of the store is missing; restore versions/000003.json" in three
    assert last.startswith("read 4 episodes of version 4, ")
    assert last.endswith("4 versions: 0 bad episodes, 3 bad versions")


def test_data_verify_with_a_damaged_newest_version_reads_an_older_one(folder: Storage) -> None:
    fill(folder, [make_episode(0)])
    fill(folder, [make_episode(1)])
    flip(folder, f"manifests/{load_manifest(folder, 2).sha256}.parquet")
    damaged, last = ask("verify", folder.uri).stdout.splitlines()
    assert "the manifest of version 2 is damaged" in damaged
    assert last.startswith("read 1 episode of version 1, ")
    assert last.endswith("0 bad episodes, 1 bad version")
    flip(folder, f"manifests/{load_manifest(folder, 1).sha256}.parquet")
    assert ask("verify", folder.uri).stdout.endswith(
        "no episode was read, because every version that lists them is damaged\n"
    )
    assert ask("verify", folder.uri).exit_code == 1


# -- log -----------------------------------------------------------------------------------------------------


@FOLDER_AND_S3
def test_data_log_lists_versions_newest_first(storage: Storage) -> None:
    fill(storage, [make_episode(0)], "first")
    fill(storage, [make_episode(1), make_episode(2)], "second")
    rows = tsv(ask("log", storage.uri).stdout)
    assert [(row["version"], row["episodes"], row["added"], row["note"]) for row in rows] == [
        ("2", "3", "2", "second"),
        ("1", "1", "1", "first"),
    ]
    assert rows[0]["fingerprint"] == load_manifest(storage, 2).fingerprint
    lines = [json.loads(line) for line in ask("log", storage.uri, "--json").stdout.splitlines()]
    assert [(line["number"], line["created"]) for line in lines] == [
        (int(row["version"]), row["created"]) for row in rows
    ]


def test_data_log_with_a_damaged_version_lists_the_others(folder: Storage) -> None:
    for seed in range(3):
        fill(folder, [make_episode(seed)])
    flip(folder, "versions/000002.json")
    result = ask("log", folder.uri)
    assert [row["version"] for row in tsv(result.stdout)] == ["3", "1"]
    assert "version 2 of the store is damaged; restore versions/000002.json" in result.stderr
    assert result.exit_code == 1


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ls", "STORE/nothing"], 1, "there is no episode store here; record one with"),
        (["log", "STORE/nothing"], 1, "there is no episode store here; record one with"),
        (
            ["verify", "s3://nobody-made-this"],
            1,
            "s3://nobody-made-this: the bucket does not exist; create it or correct the URI",
        ),
        (["ls", "ftp://there"], 1, "only folders and s3:// URIs are supported"),
        (["ls", "STORE", "--version", "7"], 1, "there is no version 7; the newest is 1"),
        (["verify", "STORE", "--version", "7"], 1, "there is no version 7; the newest is 1"),
        (["ls", "STORE", "--task", "lift"], 1, "there is no episode of task lift; did you mean Lift?"),
        (["ls", "STORE", "--task", "Juggle"], 1, "there is no episode of task Juggle; there are Lift, Stack"),
        (["show", "STORE", "Lift-00003"], 1, "there is no episode Lift-00003; did you mean Lift-00000"),
        (["show", "STORE", "juggling"], 1, "there is no episode juggling; `demoscale data ls"),
        (
            ["show", "STORE", "--sheet", "sheet.jpg"],
            2,
            "the sheet is a PNG; give it a name that ends in .png",
        ),
        (["show", "STORE", "--sheet", "/no/where/sheet.png"], 2, "there is no folder /no/where"),
    ],
)
def test_data_mistake_is_one_sentence_with_its_remedy(
    s3: str, folder: Storage, arguments: list[str], code: int, sentence: str
) -> None:
    fill(folder, mixed())
    result = ask(*(argument.replace("STORE", folder.uri) for argument in arguments))
    assert result.exit_code == code
    assert sentence in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["ls", "show", "verify", "check", "log"])
def test_every_data_command_has_help_with_an_example(command: str) -> None:
    assert f"\n  demoscale data {command} data/lift\n" in ask(command, "--help").stdout


def test_data_ls_imports_no_heavy_package(folder: Storage) -> None:
    fill(folder, [make_episode()])
    done = run("-X", "importtime", "-m", "orchestrator", "data", "ls", folder.uri)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(tsv(done.stdout)) == 1
    assert not imported_packages(done) & HEAVY
