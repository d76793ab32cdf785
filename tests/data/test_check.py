"""`demoscale data check`: each planted fault is found by its name, and a clean store has no findings."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from conftest import CHECKOUT
from matplotlib.image import imread

from orchestrator.cli.main import main
from orchestrator.data.episode_format import Episode
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.data.quality.check import check
from orchestrator.data.quality.findings import KINDS
from orchestrator.data.quality.limits import Limits
from orchestrator.data.quality.traits import best_lag, gray
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CAMERA, CONTRACT

SIDE = "sideview"
WANTED = replace(CONTRACT, cameras=(CAMERA, SIDE))
LENGTH = 60
PLANTED = 3
"""Number of the episode that a fault is planted in."""
Array = npt.NDArray[np.float64]


def pictures(place: Array, seed: int, camera: int) -> npt.NDArray[np.uint8]:
    """Return frames of a square that moves over a structured background, as a fixed camera records them."""
    y, x = np.mgrid[:64, :64]
    background = 90 + 40 * np.sin(x / (5 + 2 * camera)) + 30 * np.cos(y / 7)
    frames = np.repeat(background[None, :, :, None], 3, 3).repeat(len(place), 0)
    for frame, (right, down) in zip(frames, place[:, :2], strict=True):
        # soft edges, so that every step changes the picture
        inside = np.clip(9 - abs(x - 32 - 60 * right), 0, 1) * np.clip(9 - abs(y - 32 - 60 * down), 0, 1)
        frame += inside[..., None] * ((220, 60 + 5 * (seed % 8), 40) - frame)
    return frames.clip(0, 255).astype(np.uint8)


def demonstration(seed: int, length: int = LENGTH, labelled: bool = True, task: str = "Lift") -> Episode:
    """Return an episode of a hand that moves, closes its gripper and returns, in smooth motions with a little
    noise.
    """
    rng = np.random.default_rng([seed, 7])
    first, second = rng.uniform(0.3, 0.42), rng.uniform(0.6, 0.72)
    time = np.linspace(0, 1, length)
    goal = np.array([0.3, 0.25, -0.3]) * rng.uniform(0.7, 1.0, 3) * rng.choice([-1, 1], 3)

    def ease(begin: float, end: float) -> Array:
        part = np.clip((time - begin) / (end - begin), 0, 1)
        return part**2 * (3 - 2 * part)

    way = ease(0.02, first) - 0.8 * ease(second, 0.98)
    place = way[:, None] * goal + rng.normal(0, 2e-4, (length, 3))
    turn = 0.2 * rng.uniform(0.5, 1) * way + 0.4 * rng.uniform(-1, 1)
    quaternion = np.stack(
        [np.cos(turn), np.sin(turn), 0.05 * np.sin(3 * way + seed), np.full(length, 0.02)], 1
    )
    quaternion[:, 3] += 0.05 * rng.uniform() * way
    quaternion /= np.linalg.norm(quaternion, axis=1)[:, None]
    closed = ease(first, first + 0.12)
    fingers = np.stack([0.04 - 0.03 * closed, -0.04 + 0.03 * closed], 1) + rng.normal(0, 1e-5, (length, 2))
    delta = np.gradient(place, axis=0) * 15
    rotation = np.gradient(np.stack([turn, 0.5 * turn + 0.1 * way, way], 1), axis=0) * 3
    grip = np.where(time > first, 1.0, -1.0)[:, None]
    action = np.concatenate([delta, rotation, grip], 1) + rng.normal(0, 0.01, (length, 7)) * ([1] * 6 + [0])
    return Episode(
        f"{task}-{seed:06d}",
        task,
        "lift the red cube",
        {CAMERA: pictures(place, seed, 0), SIDE: pictures(-place[:, ::-1], seed, 1)},
        np.concatenate([place, quaternion, fingers], 1).astype(np.float32),
        action.astype(np.float32).clip(-1, 1) if labelled else None,
        True,
        "test",
    )


def store(folder: Path, episodes: Iterable[Episode]) -> str:
    storage = open_storage(str(folder / "store"))
    commit(storage, WANTED, [put_episode(storage, one, WANTED.control_hz) for one in episodes])
    return storage.uri


def store_with(folder: Path, clean: str, planted: Episode) -> str:
    """Make a copy of the clean store with one episode replaced: encoding takes most of the time of these
    tests.
    """
    shutil.copytree(Path(clean, "objects"), folder / "store" / "objects")
    storage = open_storage(str(folder / "store"))
    others = [
        entry
        for entry in load_manifest(open_storage(clean)).entries
        if entry.episode_id != planted.episode_id
    ]
    commit(storage, WANTED, [*others, put_episode(storage, planted, WANTED.control_hz)])
    return storage.uri


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["data", "check", *arguments], catch_exceptions=False)


def findings(uri: str, *options: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(ask(uri, "--json", *options).stdout)["findings"]
    return found


def demonstrations(count: int = 12) -> list[Episode]:
    return [demonstration(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store(tmp_path_factory.mktemp("clean"), [demonstration(seed) for seed in range(12)])


# -- faults --------------------------------------------------------------------------------------------------


def with_frames(
    change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
) -> Callable[[Episode], Episode]:
    return lambda episode: replace(
        episode, frames=episode.frames | {SIDE: change(episode.frames[SIDE].copy())}
    )


def with_values(kind: str, change: Callable[[npt.NDArray[np.float32]], None]) -> Callable[[Episode], Episode]:
    def changed(episode: Episode) -> Episode:
        values = getattr(episode, kind).copy()
        change(values)
        return replace(episode, **{kind: values})

    return changed


def put(places: object, value: object) -> Callable[[npt.NDArray[np.generic]], None]:
    def change(array: npt.NDArray[np.generic]) -> None:
        array[places] = value

    return change


def frozen(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frames[10:40] = frames[10]
    return frames


def black(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frames[20:30] = 0
    return frames


def dark(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frames //= 3
    return frames


def late(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return frames.take(np.maximum(np.arange(len(frames)) - 6, 0), 0)


def halved(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return frames.take(np.arange(len(frames)) // 2 * 2, 0)


def flipped(values: npt.NDArray[np.float32]) -> None:
    values[30:, 3:7] *= -1


def held(values: npt.NDArray[np.float32]) -> None:
    values[6:35] = values[6]


def waiting(episode: Episode) -> Episode:
    """Prepend 45 steps without motion."""
    assert episode.proprio is not None
    assert episode.action is not None
    steps = np.maximum(np.arange(LENGTH + 45) - 45, 0)
    frames = {name: pictures[steps] for name, pictures in episode.frames.items()}
    return replace(episode, proprio=episode.proprio[steps], action=episode.action[steps], frames=frames)


def same_cameras(episode: Episode) -> Episode:
    return replace(episode, frames={name: episode.frames[SIDE] for name in WANTED.cameras})


X, GRIPPER = WANTED.action[0], WANTED.action[-1]
PLANTINGS: list[tuple[str, str, Callable[[Episode], Episode]]] = [
    ("frozen-camera", SIDE, with_frames(frozen)),
    ("blank-camera", SIDE, with_frames(black)),
    ("lag", SIDE, with_frames(late)),
    ("repeated", SIDE, with_frames(halved)),
    ("same-camera", CAMERA, same_cameras),
    ("frozen-proprio", "", with_values("proprio", held)),
    ("gripper", GRIPPER, with_values("action", put((slice(None), 6), -1))),
    ("jump", "eef_x_m", with_values("proprio", put((33, 0), 0.6))),
    ("jump", "eef_y_m", with_values("proprio", put((slice(33, None), 1), 0.8))),
    ("quaternion", "quaternion sign", with_values("proprio", flipped)),
    ("quaternion", "quaternion length", with_values("proprio", put((30, slice(3, 7)), 0.1))),
    ("beyond", X, with_values("action", put((30, 0), 1.7))),
    ("saturated", X, with_values("action", put((slice(10, 50), 0), 1))),
    ("constant", X, with_values("action", put((slice(None), 0), 0.02))),
    ("idle", "", waiting),
    ("far", f"picture of {SIDE}", with_frames(dark)),
    ("instruction", "", lambda episode: replace(episode, instruction=" ")),
    ("duplicate", "", lambda episode: replace(demonstration(0), episode_id=episode.episode_id, success=None)),
    ("length", "", lambda episode: demonstration(PLANTED, 14)),
    ("length", "", lambda episode: demonstration(PLANTED, 300)),
]


def test_data_check_of_a_clean_store_has_no_findings(clean: str) -> None:
    result = ask(clean)
    assert result.stdout.splitlines()[:-1] == []
    assert result.stdout.startswith("checked 12 episodes, 720 frames (12 succeeded): nothing found; ")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("kind", "where", "plant"), PLANTINGS, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(PLANTINGS)]
)
def test_data_check_finds_the_planted_fault_in_its_episode(
    clean: str, tmp_path: Path, kind: str, where: str, plant: Callable[[Episode], Episode]
) -> None:
    planted = plant(demonstration(PLANTED))
    uri = store_with(tmp_path, clean, planted)
    result = ask(uri, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    named = [
        one
        for one in found
        if (one["kind"], one["where"], one["episode"]) == (kind, where, planted.episode_id)
    ]
    assert len(named) == 1, found
    assert {one["episode"] for one in found} == {planted.episode_id}
    assert named[0]["severity"] == KINDS[kind][0]
    assert named[0]["sentence"]
    assert len(found) <= 3, [(one["kind"], one["where"], one["sentence"]) for one in found]


def test_data_check_findings_have_the_planted_numbers(tmp_path: Path) -> None:
    episodes = demonstrations()
    for seed, (_, _, plant) in enumerate(PLANTINGS[:3]):
        episodes[seed] = plant(episodes[seed])
    found = {(one["kind"], one["episode"]): one for one in findings(store(tmp_path, episodes))}
    cold, dark, behind = (
        found[kind, f"Lift-{i:06d}"] for i, kind in enumerate(("frozen-camera", "blank-camera", "lag"))
    )
    assert (cold["value"], cold["unit"]) == (pytest.approx(29, abs=4), "steps")
    assert "10 of 60 pictures are black, the first at step 20" in str(dark["sentence"])
    assert (behind["value"], behind["unit"]) == (pytest.approx(6, abs=1), "steps")
    assert "behind the motion" in str(behind["sentence"])


def test_data_check_merges_a_finding_of_most_episodes(tmp_path: Path) -> None:
    episodes = [with_frames(late)(one) for one in demonstrations()]
    (found,) = [one for one in findings(store(tmp_path, episodes)) if one["kind"] == "lag"]
    assert found["episode"] is None
    assert len(found["episodes"]) > 6  # type: ignore[arg-type]
    assert f"in {len(found['episodes'])} of 12 episodes; in Lift-" in str(found["sentence"])  # type: ignore[arg-type]


def test_data_check_finds_constant_and_clipped_dimensions_of_the_store(tmp_path: Path) -> None:
    episodes = []
    for one in demonstrations():
        assert one.action is not None
        action = one.action.copy()
        action[:, 4] = 0
        action[:, 0] = np.minimum(abs(one.action[:, 0]), 0.15)
        episodes.append(replace(one, action=action))
    found = {(one["kind"], one["where"]): one for one in findings(store(tmp_path, episodes))}
    assert set(found) == {("constant", WANTED.action[4]), ("clipped", X)}
    assert found["constant", WANTED.action[4]]["episodes"] == []
    assert "0.15" in str(found["clipped", X]["sentence"])


def test_data_check_compares_action_free_films_by_their_pictures(tmp_path: Path) -> None:
    episodes = [replace(demonstration(seed, labelled=False), proprio=None) for seed in range(9)]
    episodes.append(replace(episodes[4], episode_id="Lift-000099"))
    (found,) = findings(store(tmp_path, episodes))
    assert (found["kind"], found["episode"]) == ("duplicate", "Lift-000099")
    assert "Lift-000004" in str(found["sentence"])


def test_data_check_counts_failures_and_missing_success_flags(tmp_path: Path) -> None:
    episodes = [replace(one, success=(True, False, None)[i % 3]) for i, one in enumerate(demonstrations())]
    result = ask(store(tmp_path, episodes))
    assert "(4 succeeded, 4 failed, 4 without a success flag): nothing found" in result.stdout
    assert result.exit_code == 0


def test_data_check_reports_a_damaged_episode_and_checks_the_others(tmp_path: Path) -> None:
    uri = store(tmp_path, demonstrations())
    storage = open_storage(uri)
    entry = load_manifest(storage)["Lift-000003"]
    storage.put(entry.key, storage.get(entry.key)[:-5])
    (found,) = findings(uri)
    assert (found["kind"], found["episode"]) == ("unreadable", "Lift-000003")
    sheet = tmp_path / "sheet.png"
    assert ask(uri, "--sheet", str(sheet)).exit_code == 1
    assert sheet.is_file()


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    episodes = demonstrations()
    episodes[3], episodes[8] = with_frames(frozen)(episodes[3]), replace(episodes[8], instruction="")
    return store(tmp_path_factory.mktemp("odd"), episodes)


def test_data_check_piped_prints_a_row_per_finding_by_severity(odd: str) -> None:
    result = ask(odd)
    head, *rows, last = result.stdout.splitlines()
    assert head.split("\t") == ["severity", "finding", "episode", "where", "value", "what"]
    assert [row.split("\t")[:4] for row in rows] == [
        ["high", "frozen-camera", "Lift-000003", SIDE],
        ["low", "instruction", "Lift-000008", ""],
    ]
    assert "12 episodes" in last
    assert ": 2 findings (1 high, 1 low); " in last
    assert "decoding" in last


def test_data_check_on_a_terminal_wraps_sentences(odd: str) -> None:
    screen, slave = pty.openpty()
    command = [sys.executable, "-m", "orchestrator", "data", "check", odd]
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdout=slave,
        stderr=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "90", "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):  # how a terminal reports that its writer has ended
        while some := os.read(screen, 65536):
            shown += some
    os.close(screen)
    assert process.wait() == 1
    text = " ".join(shown.decode().split())
    assert "frozen-camera" in text
    assert "…" not in text


def test_data_check_does_not_change_the_store(odd: str, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in Path(odd).rglob("*")
            if path.is_file()
        }

    before = state()
    ask(odd, "--sheet", str(tmp_path / "sheet.png"))
    assert state() == before


def test_data_check_sheet_shows_the_episodes_with_findings(odd: str, clean: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = ask(odd, "--sheet", str(sheet))
    assert result.stdout.splitlines()[-1] == f"episodes with findings, 2 of them: {sheet}"
    height, width = imread(sheet).shape[:2]
    assert width > 2 * height
    other = tmp_path / "other.png"
    assert (
        ask(clean, "--sheet", str(other)).stdout.splitlines()[-1]
        == f"no episode has findings: {other} is not written"
    )
    assert not other.exists()


def test_data_check_sample_is_spread_over_the_store(odd: str) -> None:
    said = json.loads(ask(odd, "--json", "--episodes", "4").stdout)
    assert (said["episodes"], said["of"]) == (4, 12)
    assert [one["episode"] for one in said["findings"]] == ["Lift-000003"]
    assert "checked 4 episodes of 12, " in ask(odd, "--episodes", "4").stdout


def test_data_check_ignore_drops_findings_of_a_kind(odd: str) -> None:
    assert [one["kind"] for one in findings(odd, "--ignore", "instruction")] == ["frozen-camera"]
    assert ask(odd, "--ignore", "instruction", "--ignore", "frozen-camera").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["STORE/nothing"], "there is no episode store here"),
        (["STORE", "--version", "7"], "there is no version 7; the newest is 1"),
        (["STORE", "--episodes", "0"], "0 is not in the range"),
        (["STORE", "--sheet", "sheet.jpg"], "the sheet is a PNG"),
        (["STORE", "--ignore", "jumps"], "there is no such finding; did you mean jump?"),
        (["STORE", "--ignore", "nonsense"], "there is no such finding; there are unreadable, "),
    ],
)
def test_data_check_mistake_exits_two(odd: str, arguments: list[str], sentence: str) -> None:
    result = ask(*(argument.replace("STORE", odd) for argument in arguments))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_data_check_help_names_every_kind_and_has_examples() -> None:
    text = ask("--help").stdout
    assert "\n  demoscale data check data/lift\n" in text
    assert all(kind in text for kind in KINDS)


# -- the parts -----------------------------------------------------------------------------------------------


def test_data_check_limits_are_configurable(odd: str) -> None:
    storage = open_storage(odd)
    manifest = load_manifest(storage)
    strict = check(storage, manifest, manifest.entries, Limits(frozen_s=10.0), workers=2)
    assert [finding.kind for finding in strict.findings if finding.kind == "frozen-camera"] == []


def test_data_check_findings_do_not_depend_on_the_workers(odd: str) -> None:
    assert findings(odd, "--workers", "1") == findings(odd, "--workers", "4")


def test_gray_pictures_are_block_means() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert np.allclose(gray(frames), frames.reshape(2, 32, 2, 32, 2, 3).mean((2, 4, 5)))
    assert gray(frames[:, :50, :7]).shape == (2, 32, 7)
    assert gray(np.full((1, 480, 640, 3), 255, np.uint8)).min() == 255


@pytest.mark.parametrize("lag", [-7, 0, 4])
def test_best_lag_finds_the_applied_lag(lag: int) -> None:
    rng = np.random.default_rng(1)
    speed = np.convolve(rng.normal(size=120), np.ones(5), "valid")
    best = best_lag(np.roll(speed, lag), speed, 20)
    assert best is not None
    assert best[0] == lag
