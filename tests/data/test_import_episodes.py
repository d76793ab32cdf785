"""The import and export commands: killed, run again, and exported as a LeRobot dataset."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import run

import dataset_layouts
import robosuite_recordings
from begun_command import begin
from dataset_layouts import UPRIGHT
from orchestrator.cli.main import main
from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import commit, fetch, latest_version, load_manifest
from orchestrator.data.exporters.lerobot_v3 import export, exportable
from orchestrator.data.import_episodes import Importer, LeftOut, import_episodes, missing, reconcile_contract
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source
from orchestrator.data.manifest import Manifest
from orchestrator.storage.base import Storage, open_storage
from robosuite_recordings import CAMERAS

pytestmark = pytest.mark.sim  # the recordings are robosuite's own

COPIES = 6  # of the three demonstrations, so that an import can be killed half-way
SMALL_COMMITS = (
    "import orchestrator.data.parallel_writer as record; record.COMMIT_EVERY = 2; from"
    " orchestrator.cli.import_command import import_; import_()"
)


@pytest.fixture(scope="module")
def lift(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an HDF5 file of eighteen demonstrations."""
    return dataset_layouts.robomimic(
        recorded,
        tmp_path_factory.mktemp("source") / "lift.hdf5",
        robosuite_recordings.load(recorded) * COPIES,
    )


@pytest.fixture(scope="module")
def imported(lift: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Return a store with all of them, by an uninterrupted import."""
    storage = open_storage(str(tmp_path_factory.mktemp("undisturbed") / "store"))
    fill(storage, lift, UPRIGHT)
    return storage


def fill(storage: Storage, path: Path, reading: ImportOptions) -> list[str]:
    """Import everything through Ray; return the reasons of omitted episodes."""
    source = reconcile_contract(open_source(path, reading), storage)
    answers = list(import_episodes(storage, source, missing(source, storage), workers=2, note="a test"))
    return [answer.reason for answer in answers if isinstance(answer, LeftOut)]


def import_here(storage: Storage, path: Path, reading: ImportOptions, most: int | None = None) -> None:
    """Import the first episodes of a source, all of them by default, without Ray."""
    source = reconcile_contract(open_source(path, reading), storage)
    importer = Importer(source, storage.uri)
    answers = [importer.record(item) for item in missing(source, storage)[:most]]
    entries = [answer for answer in answers if not isinstance(answer, LeftOut)]
    assert entries == answers
    commit(storage, source.contract, entries)


# -- importing -----------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_imported_episodes_equal_the_recordings(imported: Storage, recorded: Path) -> None:
    manifest = load_manifest(imported)
    assert len(manifest) == 3 * COPIES
    meant = robosuite_recordings.load(recorded)
    for number in (0, 4):
        entry = manifest[f"lift-demo_{number}"]
        assert (entry.task, entry.instruction, entry.success, entry.labelled) == (
            "Lift",
            "lift the red cube",
            True,
            True,
        )
        read = decode(fetch(imported, entry), CAMERAS, with_actions=True)
        assert read.action is not None
        assert np.array_equal(read.action, meant[number % 3].action.astype(np.float32))
        assert read.frames[CAMERAS[0]].shape == meant[number % 3].frames[CAMERAS[0]].shape


@pytest.mark.full
@pytest.mark.ray
def test_import_killed_and_run_again_equals_the_uninterrupted_one(
    lift: Path, imported: Storage, tmp_path: Path
) -> None:
    storage = open_storage(str(tmp_path / "store"))
    begin(
        ["-c", SMALL_COMMITS, str(lift), storage.uri, "--images", "upright", "--workers", "1"],
        tmp_path / "killed",
        ready=lambda: latest_version(storage) >= 2,
    ).kill()
    half = len(load_manifest(storage))
    assert 0 < half < 3 * COPIES, "killed too late to test anything"
    assert not fill(storage, lift, UPRIGHT)
    assert load_manifest(storage).fingerprint == load_manifest(imported).fingerprint


@pytest.mark.ray
def test_import_run_again_adds_no_version(lift: Path, imported: Storage) -> None:
    version = latest_version(imported)
    done = CliRunner().invoke(main, ["import", str(lift), imported.uri, "--images", "upright"])
    assert done.exit_code == 0, done.stderr
    assert "0 episodes to import, 18 already there" in done.stdout
    assert "starting Ray" not in done.stdout
    assert latest_version(imported) == version


def test_import_omits_a_damaged_demonstration(recorded: Path, tmp_path: Path) -> None:
    path = dataset_layouts.robomimic(recorded, tmp_path / "lift.hdf5", robosuite_recordings.load(recorded))
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][3] = np.nan
    storage = open_storage(str(tmp_path / "store"))
    import_here(storage, path, UPRIGHT)  # it is omitted before anything is read
    problems = open_source(path, UPRIGHT).problems
    assert len(problems) == 1
    assert "demo_0: " in problems[0]
    assert "not a number" in problems[0]
    assert load_manifest(storage).episode_ids == ["lift-demo_1", "lift-demo_2"]


def test_import_dry_run_lists_the_source_and_writes_nothing(recorded: Path, tmp_path: Path) -> None:
    path = dataset_layouts.robocasa(recorded, tmp_path / "lift.hdf5", robosuite_recordings.load(recorded))
    sheet = tmp_path / "sheet.png"
    listing = ["import", str(path), str(tmp_path / "store"), "--arm-only", "--dry-run", "--sheet", str(sheet)]
    done = CliRunner().invoke(main, listing)
    assert done.exit_code == 0, done.stderr
    for words in (
        "RoboCasa HDF5",
        "2 with actions, 0 without;",
        "Lift: 2 episodes, 2 instructions, such as lift the red cube number 0",
        "agentview, robot0_eye_in_hand, 64x64 pixels",
        "gripper_minus1_open_plus1_close",
        "20 steps per second",
        "robosuite 1.5.2, mujoco unknown; pictures: imported",
        "demo_2: the base moves, which --arm-only cannot express; left out",
        "pictures of this format are stored both ways up",
        "2 episodes to import, 0 already there",
    ):
        assert words in done.stdout
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "store").exists()
    refused = run("-m", "jobs.ingest", str(path), str(tmp_path / "store"))
    assert refused.returncode == 2
    assert "then say --images upright or upside-down or rotated" in refused.stderr
    assert not (tmp_path / "store").exists()


def test_import_mistake_is_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["import", str(tmp_path / "nowhere"), str(tmp_path / "store")])
    assert done.exit_code == 2
    assert done.stderr == f"{tmp_path / 'nowhere'}: there is no such file or folder\n"


# -- into an existing store ----------------------------------------------------------------------------------


def test_import_of_films_into_a_store_of_demonstrations(recorded: Path, tmp_path: Path) -> None:
    episodes, storage = robosuite_recordings.load(recorded), open_storage(str(tmp_path / "store"))
    import_here(
        storage, dataset_layouts.robomimic(recorded, tmp_path / "lift.hdf5", episodes), UPRIGHT, most=1
    )
    contract = load_manifest(storage).contract
    import_here(
        storage,
        dataset_layouts.films(tmp_path / "films", episodes),
        ImportOptions(cameras={camera: camera for camera in reversed(CAMERAS)}),
        most=1,
    )
    manifest = load_manifest(storage)
    assert manifest.contract == contract
    entry = manifest["films-Lift-demo_0"]
    assert (entry.labelled, entry.task, entry.proprio_stats, entry.action_stats, entry.success) == (
        False,
        "Lift",
        None,
        None,
        None,
    )
    read = decode(fetch(storage, entry), contract.cameras, with_actions=True)
    assert (read.action, read.proprio) == (None, None)

    for change, words in (
        (
            {"image_size": (32, 32)},
            "image size: the store has 64, 64, these have 32, 32 (scale with --image-size)",
        ),
        (
            {"resample_hz": 10.0},
            "control hz: the store has 20.0, these have 10.0 (choose the store's rate with --resample-hz",
        ),
        (
            {"cameras": {CAMERAS[0]: "top"}},
            (
                "cameras: the store has agentview, robot0_eye_in_hand, these have top (choose and name them"
                " with --cameras)"
            ),
        ),
    ):
        with pytest.raises(SourceError) as error:
            reconcile_contract(open_source(tmp_path / "films", replace(ImportOptions(), **change)), storage)  # type: ignore[arg-type]
        assert words in str(error.value)
    zarr = dataset_layouts.replay_buffer(tmp_path / "lift.zarr", episodes)
    with pytest.raises(
        SourceError, match=r"simulator: the store has robosuite 1.5.2, mujoco unknown, these have unknown"
    ):
        reconcile_contract(open_source(zarr, ImportOptions(hz=20, task="Lift")), storage)
    import_here(
        storage,
        zarr,
        ImportOptions(hz=20, task="Lift", panda=True, simulator=contract.simulator, label="zarr"),
        most=1,
    )
    assert len(load_manifest(storage)) == 3


def test_import_of_another_recording_of_the_same_name_raises(recorded: Path, tmp_path: Path) -> None:
    episodes, storage = robosuite_recordings.load(recorded), open_storage(str(tmp_path / "store"))
    import_here(
        storage, dataset_layouts.robomimic(recorded, tmp_path / "lift.hdf5", episodes), UPRIGHT, most=1
    )
    other = dataset_layouts.robomimic(recorded, tmp_path / "lift.hdf5", episodes[::-1])
    with pytest.raises(
        SourceError, match=r"episode lift-demo_0 is already there from another recording .* with --label"
    ):
        missing(open_source(other, UPRIGHT), storage)
    assert len(missing(open_source(other, replace(UPRIGHT, label="lift2")), storage)) == 3


# -- exporting -----------------------------------------------------------------------------------------------


def exported(storage: Storage, folder: Path, labelled_only: bool = False) -> Manifest:
    manifest = load_manifest(storage)
    entries = exportable(storage, manifest, labelled_only)
    assert [entry.episode_id for entry in export(storage, manifest.contract, entries, folder)] == [
        entry.episode_id for entry in entries
    ]
    return manifest


@pytest.mark.ray
def test_lerobot_export_round_trips_through_the_import(imported: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "lift"
    done = CliRunner().invoke(main, ["export", imported.uri, str(folder)])
    assert done.exit_code == 0, done.stderr
    assert f"exported {3 * COPIES} episodes" in done.stdout
    manifest = load_manifest(imported)
    source = open_source(folder, ImportOptions(simulator=manifest.contract.simulator))
    assert source.contract == manifest.contract
    assert len(source.items) == len(manifest)
    for item, entry in list(zip(source.items, manifest.entries, strict=True))[::7]:
        stored, read = (
            decode(fetch(imported, entry), manifest.contract.cameras, with_actions=True),
            source.read(item),
        )
        assert (read.task, read.instruction, read.success) == (
            stored.task,
            stored.instruction,
            stored.success,
        )
        assert read.proprio is not None
        assert stored.proprio is not None
        assert np.array_equal(read.proprio, stored.proprio)
        assert read.action is not None
        assert stored.action is not None
        assert np.array_equal(read.action, stored.action)
        assert all(
            np.array_equal(read.frames[camera], stored.frames[camera]) for camera in manifest.contract.cameras
        )


@pytest.mark.ray
def test_lerobot_export_statistics_are_those_of_its_rows(imported: Storage, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "lift"
    exported(imported, folder)
    statistics = json.loads((folder / "meta/stats.json").read_text())
    rows = np.asarray(
        pq.ParquetFile(folder / "data/chunk-000/file-000.parquet")
        .read(["action"], use_threads=False)["action"]
        .to_pylist()
    )
    assert np.allclose(statistics["action"]["mean"], rows.mean(0))
    assert np.allclose(statistics["action"]["std"], rows.std(0))
    assert np.allclose(statistics["action"]["max"], rows.max(0))
    assert statistics["action"]["count"] == [len(rows)]
    picture = statistics[f"observation.images.{CAMERAS[0]}"]
    assert np.shape(picture["mean"]) == (3, 1, 1)
    assert 0 < picture["mean"][0][0][0] < 1


def test_lerobot_export_refuses_episodes_without_actions(recorded: Path, tmp_path: Path) -> None:
    episodes, storage = robosuite_recordings.load(recorded), open_storage(str(tmp_path / "store"))
    import_here(storage, dataset_layouts.films(tmp_path / "films", episodes), ImportOptions(), most=1)
    with pytest.raises(EpisodeError, match="no episode has actions"):
        exported(storage, tmp_path / "out", labelled_only=True)
    mixed = open_storage(str(tmp_path / "mixed"))
    import_here(mixed, dataset_layouts.robomimic(recorded, tmp_path / "lift.hdf5", episodes), UPRIGHT, most=1)
    import_here(mixed, tmp_path / "films", ImportOptions(), most=1)
    with pytest.raises(
        EpisodeError,
        match=(
            "1 of 2 episodes have no actions, which LeRobot cannot express; leave them out with"
            " --labelled-only"
        ),
    ):
        exported(mixed, tmp_path / "out")
    exported(mixed, tmp_path / "out", labelled_only=True)
    assert [item.task for item in open_source(tmp_path / "out", ImportOptions()).items] == ["Lift"]
    with pytest.raises(EpisodeError, match="it is not empty; export into a new folder"):
        exported(mixed, tmp_path / "out", labelled_only=True)
