"""Fingerprints of results: code that acts and trains, packages, device, weights by content; and the parts
that differ.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator import code_fingerprint as fingerprints
from orchestrator import provenance
from orchestrator.cli.main import main
from orchestrator.cluster.ray_runtime import ROLE, acting_device
from orchestrator.code_fingerprint import SCORING_CODE, SIMULATING_CODE, TRAINING_CODE, code_fingerprint
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.action_error import ActionScale
from orchestrator.evaluation.action_error_score import ActionErrorBenchmark
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.scores import protocol_key
from orchestrator.fingerprints import Key
from orchestrator.provenance import same_weights, weights_label
from orchestrator.storage.base import open_storage
from orchestrator.sweep.explain import explain
from orchestrator.sweep.external_lines import ExternalLine
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.testing.checkpoints import make_checkpoint, make_observation
from orchestrator.testing.episodes import CONTRACT, make_episode_store
from orchestrator.testing.outcomes import make_outcome
from policy.presets import PRESETS
from policy.weights import WeightsError, local_folder
from sim_workers.checkout import CHECKOUT, PACKAGES, sources
from sim_workers.rollout.suite import EpisodeRules, Suite

SUITE = Suite(("Lift",), 4, EpisodeRules(50))
SAMPLER = PRESETS["tiny"].sampler_on("")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def protocol(**changed: object) -> str:
    facts = {"suite": SUITE, "contract": CONTRACT, "sampler": SAMPLER, "gl": "egl"} | changed
    return protocol_key(**facts).fingerprint  # type: ignore[arg-type]


# -- code ----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[str, str]]]:
    """Yield a function that edits a copy of the checkout in `tmp_path`: called with a file, it returns the
    keys (scores, training) with that file edited, and that one alone.
    """
    for package in PACKAGES:
        shutil.copytree(
            CHECKOUT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "pretrained")
        )
    monkeypatch.setattr(fingerprints, "CHECKOUT", tmp_path)

    def forget() -> None:
        for cached in (
            sources,
            fingerprints.code_hashes,
            fingerprints.code_fingerprint,
            fingerprints._closure,
            fingerprints._imported,
            fingerprints._modules,
        ):
            cached.cache_clear()

    def keys(
        edited: str = "", edit: Callable[[str], str] = lambda text: text + "\nEDITED = True\n"
    ) -> tuple[str, str]:
        forget()
        if not edited:
            return protocol(), code_fingerprint(TRAINING_CODE)
        before = (tmp_path / edited).read_bytes()
        after = edit(before.decode()).encode()
        assert after != before
        (tmp_path / edited).write_bytes(after)
        told = keys()
        (tmp_path / edited).write_bytes(before)
        return told

    yield keys
    forget()


def test_code_key_changes_with_an_edit_of_its_own_files_only(
    copy: Callable[..., tuple[str, str]],
) -> None:
    score, training = copy()
    acting = (
        "policy/edm.py",
        "policy/inference.py",
        "policy/normalize.py",
        "policy/interface.py",
        "policy/text_encoder.py",
        "policy/model.py",
    )
    acting += (
        "sim_workers/rollout/worker.py",
        "sim_workers/rollout/policy_clients.py",
        "sim_workers/envs/robosuite.py",
        "sim_workers/envs/libero.py",
        "sim_workers/envs/robocasa.py",
    )
    for file in (
        *acting,
        "orchestrator/evaluation/policy_server.py",
        "sim_workers/rollout/ray_policy_client.py",
        "policy/http_policy.py",
    ):
        assert copy(file)[0] != score, file
    for file in (
        "policy/trainer.py",
        "policy/model.py",
        "policy/augmentation.py",
        "orchestrator/training/loop.py",
        "orchestrator/data/clips.py",
    ):
        assert copy(file)[1] != training, file
    for file in (
        "policy/trainer.py",
        "orchestrator/training/loop.py",
        "sim_workers/demos/experts.py",
        "sim_workers/rollout/pool.py",
    ):
        assert copy(file)[0] == score, file
    for file in (
        "sim_workers/envs/robosuite.py",
        "policy/inference.py",
        "orchestrator/evaluation/policy_server.py",
    ):
        assert copy(file)[1] == training, file
    for file in (
        "orchestrator/cli/main.py",
        "orchestrator/data/exporters/lerobot_v3.py",
        "orchestrator/data/importers/robomimic_hdf5.py",
        "orchestrator/report/html.py",
    ):
        assert copy(file) == (score, training), file
    assert copy() == (score, training), "the copy is as it was"


def test_code_key_ignores_comments_docstrings_and_layout(
    copy: Callable[..., tuple[str, str]],
) -> None:
    before = copy()

    def edit(text: str) -> str:
        return "# a comment\n" + text.replace('"""', '"""Edited: ', 1).replace(
            "\n\n\n", "\n\n# another\n\n\n"
        )

    for file in (
        "policy/edm.py",
        "policy/interface.py",
        "sim_workers/envs/robosuite.py",
        "orchestrator/training/loop.py",
        "orchestrator/data/subset.py",
    ):
        assert copy(file, edit) == before, file
    attribute = '    steps_per_chunk: int = 1\n    """Not there before."""\n'
    assert copy("policy/interface.py", lambda text: text + '\n"""What follows nothing."""\n') == before
    assert copy("policy/interface.py", lambda text: f"{text}\nclass Added:\n{attribute}") != before


def test_code_key_changes_with_a_constant_an_operator_or_an_import(
    copy: Callable[..., tuple[str, str]],
) -> None:
    score, training = copy()
    edits = {
        "policy/edm.py": ("(sigma**2 + 1)", "(sigma**2 + 2)"),
        "policy/inference.py": ("import HALF, Batch, Counts, blocks", "import HALF, Batch, Counts, stacks"),
        "policy/interface.py": ("\nimport ", "\nimport json\nimport "),
    }
    for file, (old, new) in edits.items():
        assert copy(file, lambda text, old=old, new=new: text.replace(old, new, 1))[0] != score, file
    assert copy("policy/losses.py", lambda text: text.replace(".mean(2)", ".sum(2)"))[1] != training


def test_code_key_ignores_a_moved_file(copy: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    before = copy()
    (tmp_path / "policy/networks").mkdir()
    (tmp_path / "policy/networks/__init__.py").write_text('"""Networks."""\n')
    (tmp_path / "policy/edm.py").rename(tmp_path / "policy/networks/edm.py")
    (tmp_path / "orchestrator/data/clip_stream.py").rename(tmp_path / "orchestrator/data/clip_stream.py")
    moved = {
        "policy.edm import": "policy.networks.edm import",
        "from orchestrator.data import stream\n": "from orchestrator.data import clip_stream as stream\n",
    }
    for package in PACKAGES:
        for file in (tmp_path / package).rglob("*.py"):
            for old, new in moved.items():
                file.write_text(file.read_text().replace(old, new))
    assert copy() == before
    assert {"policy/networks/edm.py", "policy/networks/__init__.py"} <= set(SCORING_CODE)


def test_code_closure_follows_relative_and_function_level_imports(tmp_path: Path) -> None:
    files = {
        "policy/__init__.py": "",
        "policy/a.py": "import json\ndef f():\n    from policy import b, VALUE\n",
        "policy/b.py": "from . import c\nfrom .d import x\nfrom .sub.e import y\n",
        "policy/c.py": "import sim_workers.f as g\n",
        "policy/d.py": "x = 1\n",
        "policy/sub/__init__.py": "from .. import h\n",
        "policy/sub/e.py": "y = 'import policy.unread'\n",
        "policy/h.py": "",
        "policy/unread.py": "",
        "sim_workers/f.py": "import orchestrator.i\nimport policy.a\n",
        "orchestrator/i.py": "import policy.unread\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = fingerprints._closure(("policy/a.py",), ("policy/", "sim_workers/"), tmp_path)
    assert set(found) == files.keys() - {"policy/unread.py", "orchestrator/i.py"}


def imported_by(program: str, *arguments: str) -> set[str]:
    """Return the checkout's files whose modules a process had imported when the program ended."""
    told = (
        "\nimport sys; print(*(module.__file__ for module in sys.modules.copy().values() if getattr(module,"
        " '__file__', None)), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-W", "ignore", "-c", program + told, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    return {file.relative_to(CHECKOUT).as_posix() for file in files if file.is_relative_to(CHECKOUT)}


ACT = """
import asyncio, pickle, sys
import sim_workers.rollout.worker, sim_workers.rollout.ray_policy_client
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.policy_server import PolicyServer
observation = pickle.load(open(sys.argv[2], "rb"))
chunk = asyncio.run(PolicyServer(1, "cpu").act(CheckpointRef(sys.argv[1]), observation))
assert chunk.actions.shape[1] == 7
"""
TRAIN = """
import sys
from functools import partial
from orchestrator.config.arms import Arm
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.subset import select_episodes
from orchestrator.storage.base import open_storage
from orchestrator.training.loop import TrainJob, train
from orchestrator.config.schema import Train
from policy.presets import PRESETS
settings, said = Train(steps=1, batch_size=2, checkpoint_every=1, warmup_steps=0), []
arm = Arm(3, 1.0, 0)
subset = select_episodes(load_manifest(open_storage(sys.argv[1])), arm)
job = TrainJob(arm, "a", sys.argv[1], 1, subset, PRESETS["tiny"], settings, "joint", "none")
train(job, 0, 1, None, lambda *told: said.append(told))
assert said
import orchestrator.training.ray_train
"""


def test_scoring_code_contains_every_module_imported_to_act(tmp_path: Path) -> None:
    place = make_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "observation").write_bytes(pickle.dumps(make_observation(0)))
    imported = imported_by(ACT, str(place), str(tmp_path / "observation"))
    relevant = {file for file in imported if file.startswith(("policy/", "sim_workers/"))}
    assert {"policy/inference.py", "policy/edm.py", "sim_workers/envs/robosuite.py"} <= relevant, "it acted"
    assert relevant <= set(SCORING_CODE)
    assert set(SIMULATING_CODE) < set(SCORING_CODE)


@pytest.mark.full
def test_training_code_contains_every_module_imported_to_train(tmp_path: Path) -> None:
    imported = imported_by(TRAIN, make_episode_store(tmp_path / "store", 8))
    relevant = {file for file in imported if file.startswith(("policy/", "orchestrator/data/"))}
    assert {"policy/trainer.py", "policy/losses.py", "orchestrator/data/clips.py"} <= relevant, "it trained"
    assert relevant <= set(TRAINING_CODE)


# -- parts of keys -------------------------------------------------------------------------------------------


def known_keys() -> dict[str, Key]:
    """Return keys with fixed data, packages and conventions."""
    versions = dict.fromkeys({*provenance.ACTING_PACKAGES, *provenance.TRAINING_PACKAGES}, "1.0")
    lines: list[dict[str, object]] = [{"policy": name} for name in ("video_action", "diffusion_policy")]
    lines += [{"name": "slow", "policy": "video_action", "train": {"learning_rate": 1e-5}}]
    sweep = SweepConfig.model_validate(
        {
            "name": "known",
            "data": {"episodes": "data", "demo_count": [2, 4]},
            "policy": {"lines": lines},
            "train": {"steps": 100, "checkpoint_every": 40, "batch_size": 4},
            "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 50},
        }
    )
    data = ("manifest", ["damaged"])
    keys = {
        line.name: sweep.training_key(*data, "weights", versions, arm=Arm(4, 0.0, 0, line.name))
        for line in sweep.lines
    }
    external = ExternalLine("programs", {"rate": 0.5}, ("steps", "batch_size"), False)
    keys["external"] = external.key(sweep.data_parts(*data), sweep.train, versions)
    contract = replace(CONTRACT, simulator="simulator 1.0")
    for name, sampler in (("scored", SAMPLER), ("scored external", None)):
        keys[name] = protocol_key(SUITE, contract, sampler, "egl", packages=versions)
    scale = ActionScale((0.0,) * 7, (1.0,) * 7)
    keys["measured"] = ActionErrorBenchmark("data", contract, (), scale).key(SAMPLER, "cpu", versions)
    return keys


def test_keys_of_own_and_external_policies_are_those_of_earlier_versions() -> None:
    """Apart from code: these are literal fingerprints of stored results."""
    found = {
        name: Key(key.kind, {**key.parts, "code": {"file": "hash"}}).fingerprint
        for name, key in known_keys().items()
    }
    assert found == {
        "video_action": "1b022159ffa9e4e2",
        "diffusion_policy": "1b022159ffa9e4e2",
        "slow": "f7b7263b9b72bc72",
        "external": "0532da739582b2bc",
        "scored": "2ea4b25e212f515d",
        "scored external": "de22746c3deb937e",
        "measured": "a6832ead64e0086f",
    }


# -- packages, device, weights -------------------------------------------------------------------------------


def test_protocol_fingerprint_depends_on_packages_and_device() -> None:
    versions = provenance.package_versions(provenance.ACTING_PACKAGES)
    assert protocol(packages=versions) == protocol()
    keys = {
        protocol(packages={**versions, name: "0.0.1"})
        for name in ("torch", "diffusers", "numpy", "mujoco", "robosuite", "transformers")
    }
    keys |= {protocol(), protocol(device="H200"), protocol(device="A100"), protocol(device="A100+H200")}
    assert len(keys) == 10


@pytest.mark.parametrize(
    ("nodes", "gpus", "device"),
    [
        ([("", "H200")], 0.0, "cpu"),
        ([("", "H200"), ("", "")], 1.0, "H200"),
        ([("", "H200"), ("", "A100")], 1.0, "A100+H200"),
        ([("", "H200"), ("servers", "L4")], 1.0, "L4"),
        ([("rollouts", "")], 0.25, "gpu"),
    ],
)
def test_acting_device_is_that_of_nodes_that_may_host_policy_servers(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[str, str]], gpus: float, device: str
) -> None:
    def node(role: str, kind: str) -> dict[str, object]:
        resources = {"CPU": 8.0} | ({"GPU": 4.0, f"accelerator_type:{kind}": 1.0} if kind else {})
        return {"Alive": True, "Labels": {ROLE: role} if role else {}, "Resources": resources}

    monkeypatch.setattr(
        "ray.nodes", lambda: [*(node(*one) for one in nodes), node("", "T4") | {"Alive": False}]
    )
    assert acting_device(gpus) == device


def test_protocol_fingerprint_of_a_foreign_policy_ignores_device_and_torch() -> None:
    versions = provenance.package_versions(provenance.ACTING_PACKAGES)
    theirs = protocol(sampler=None)
    assert (
        theirs
        == protocol(sampler=None, device="H200")
        == protocol(sampler=None, packages={**versions, "torch": "0"})
    )
    assert theirs != protocol(sampler=None, packages={**versions, "mujoco": "0"})


def test_weights_label_of_a_folder_depends_on_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet/config.json").write_text("{}")
        (tmp_path / name / "unet/w.safetensors").write_bytes(b"1")
    assert weights_label(str(tmp_path / "a")) == weights_label(str(tmp_path / "b"))
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c/unet/w.safetensors").write_bytes(b"2")
    assert weights_label(str(tmp_path / "c")) != weights_label(str(tmp_path / "a"))
    assert weights_label("") == ""


def test_weights_label_of_a_hub_repository_names_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    provenance._hub_revision.cache_clear()
    assert weights_label("owner/name") == "owner/name@unresolved"
    reference = tmp_path / "models--owner--name/refs/main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    provenance._hub_revision.cache_clear()
    assert weights_label("owner/name") == f"owner/name@{COMMIT}" == weights_label(f"owner/name@{COMMIT}")
    provenance._hub_revision.cache_clear()


def test_local_folder_downloads_the_commit_named_by_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for source in (f"owner/name@{COMMIT}", "owner/name"):
        with pytest.raises(WeightsError, match="did not deliver it"):
            local_folder(source)
    assert asked == [("owner/name", COMMIT), ("owner/name", None)]


def test_weights_label_of_a_bucket_depends_on_content(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/{tmp_path.name}/weights"
    place = open_storage(uri)

    def label() -> str:
        provenance._bucket_revision.cache_clear()
        return weights_label(uri)

    assert label() == f"{uri}@unresolved", "there is nothing"
    place.put("unet/config.json", b"{}")
    place.put("unet/w.safetensors", b"1")
    first = label()
    assert first == label() != f"{uri}@unresolved"
    place.put("unet/w.safetensors", b"2")
    assert label() != first
    place.put("unet/w.safetensors", b"1")
    assert label() == first


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (f"a/b@{COMMIT}", f"a/b@{COMMIT[::-1]}", f"a/b@{COMMIT}"),
        (f"a/b@{COMMIT}", "a/b@unresolved", f"a/b@{COMMIT}"),
        ("a/b@unresolved", f"a/b@{COMMIT}", "a/b@unresolved"),
        ("s3://b/w@0123456789abcdef", "s3://b/w@fedcba9876543210", "s3://b/w@fedcba9876543210"),
        ("0123456789abcdef", "fedcba9876543210", "fedcba9876543210"),
    ],
)
def test_same_weights_keeps_the_known_commit_and_ignores_unresolved_ones(
    before: str, now: str, said: str
) -> None:
    assert same_weights(before, now) == said


# -- the keys that a sweep keeps, and their differences ------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> SweepState:
    """Return a sweep of one arm that a run has pinned, trained to half its steps and scored on a CPU."""
    settings = {
        "name": "one",
        "data": {
            "episodes": make_episode_store(tmp_path / "store", 8),
            "demo_count": [2],
            "action_free_ratio": [0],
        },
        "train": {"steps": 20, "checkpoint_every": 10, "batch_size": 2},
        "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 50, "shifts": ["camera"]},
        "storage": str(tmp_path / "runs"),
    }
    state = SweepState.open(SweepConfig.model_validate(settings), pin=True).on_device("cpu")
    state.keep_keys()
    (arm_id,) = state.arms()
    note = {"loss": 1.0, "loss_video": 1.0, "loss_action": 0.0, "checkpoint": "0123456789abcdef"}
    state.storage.put(f"checkpoints/{arm_id}/step_000010.json", json.dumps(note).encode())
    outcomes = [make_outcome(spec, won=True) for spec in state.sweep.to_suite().episode_list()]
    Ledger(state.storage, "0123456789abcdef", state.protocol).record(outcomes)
    return state


ARM = "demos-2_ratio-0_seed-0"


def test_sweep_state_by_name_uses_pinned_device_and_packages(
    state: SweepState, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = state.on_device("H200")
    assert on_gpu.protocol != state.protocol
    monkeypatch.setattr(
        "orchestrator.sweep.state.package_versions", lambda names: dict.fromkeys(names, "0.0.1")
    )
    elsewhere = SweepState.named("one", state.storage.uri)
    assert (elsewhere.protocol, elsewhere.training) == (on_gpu.protocol, on_gpu.training)
    here = SweepState.named("one", state.storage.uri, here=True)
    assert here.protocol != on_gpu.protocol
    assert here.training != on_gpu.training


def test_explain_of_a_continued_arm_reports_no_difference(state: SweepState) -> None:
    told = explain(state, ARM)
    assert told.training.same
    assert told.score.same
    assert told.training.parts
    assert not any(part.differs for part in told.training.parts)
    assert (told.first_step, told.episodes) == (10, 4 + 4), "the last checkpoint, under two shifts"
    assert told.consequence == "the arm is trained from step 10 to 20, 8 episodes are played"


def test_explain_names_exactly_the_parts_that_differ(state: SweepState) -> None:
    other = replace(state, packages={**state.packages, "torch": "0.0.1"})
    told = explain(other, ARM)
    assert [part.part for part in told.training.parts or () if part.differs] == ["packages torch"]
    assert [part.part for part in told.score.parts or () if part.differs] == ["packages torch"]
    assert (told.first_step, told.episodes) == (0, 12)
    assert told.consequence == "the arm is trained again from step 0 to 20, 12 episodes are played again"
    assert f"differs: {state.packages['torch']} -> 0.0.1" in "\n".join(told.lines())
    longer = replace(
        state,
        sweep=state.sweep.model_copy(
            update={"train": state.sweep.train.model_copy(update={"batch_size": 4})}
        ),
    )
    told = explain(longer, ARM)
    assert [(part.part, part.stored, part.now) for part in told.training.parts or () if part.differs] == [
        ("recipe batch_size", 2, 4)
    ]
    assert told.score.same


def test_explain_on_another_device_repeats_scores_only(state: SweepState) -> None:
    told = explain(state.on_device("H200"), ARM)
    assert told.training.same
    assert [str(part) for part in told.score.parts or () if part.part == "device"] == ["differs: cpu -> H200"]
    assert told.consequence == "the arm is trained from step 10 to 20, 12 episodes are played again"


def test_explain_names_the_edited_code_file(state: SweepState, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = fingerprints.code_hashes
    monkeypatch.setattr(
        "orchestrator.evaluation.scores.code_hashes", lambda code: {**hashes(code), "policy/edm.py": "edited"}
    )
    told = explain(state, ARM)
    assert [part.part for part in told.score.parts or () if part.differs] == ["code policy/edm.py"]


def test_status_of_a_sweep_of_an_earlier_version_is_unchanged(
    state: SweepState, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SweepState.named("one", state.storage.uri).board()
    hashes = fingerprints.code_hashes
    for place in (
        "orchestrator.evaluation.scores.code_hashes",
        "orchestrator.config.sweep_config.code_hashes",
    ):
        monkeypatch.setattr(place, lambda code: {**hashes(code), "policy/edm.py": "edited"})
    (key,) = [
        name
        for name in state.storage.list("keys/")
        if json.loads(state.storage.get(name))["kind"] == "training"
    ]
    note = json.loads(state.storage.get(key))
    note["parts"]["recipe"] = state.sweep.train.model_dump(mode="json")  # an earlier version's: every field
    state.storage.put(key, json.dumps(note).encode())
    now = SweepState.named("one", state.storage.uri)
    assert now.board().lines() == before.lines()
    (arm,) = now.board().arms.values()
    assert (arm.step, [*arm.scoring]) == (10, [10])
    (arm,) = SweepState.named("one", state.storage.uri, here=True).board().arms.values()
    assert arm.step == 0, "the next run uses the current code"


def test_explain_without_stored_keys_says_that_parts_are_unknown(state: SweepState) -> None:
    for key in state.storage.list("keys/"):
        Path(state.storage.uri, key).unlink()
    told = explain(replace(state, packages={**state.packages, "torch": "0.0.1"}), ARM)
    assert "nothing is known of its parts" in told.training.lines()[0]
    assert told.training.parts is None
    assert Key.kept(state.storage, state.training) is None


def test_explain_command_prints_lines_and_json(state: SweepState) -> None:
    done = CliRunner().invoke(main, ["explain", "one", ARM, "--storage", state.storage.uri])
    assert done.exit_code == 0, done.output
    assert (
        done.stdout.splitlines()[-1]
        == "the next run: the arm is trained from step 10 to 20, 8 episodes are played"
    )
    lines = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {
        "code",
        "packages",
        "device",
        "data",
        "recipe",
        "weights",
        "suite",
        "sampler",
        "contract",
        "GL",
    } <= lines.keys()
    assert set(lines.values()) == {"same"}
    as_json = json.loads(
        CliRunner().invoke(main, ["explain", "one", ARM, "--storage", state.storage.uri, "--json"]).stdout
    )
    assert (as_json["episodes"], as_json["training"]["same"]) == (8, True)
    file = Path(state.storage.uri) / "sweep.yaml"
    file.write_text(
        state.sweep.model_copy(
            update={"train": state.sweep.train.model_copy(update={"batch_size": 4})}
        ).to_yaml()
    )
    assert (
        "recipe batch_size  differs: 2 -> 4" in CliRunner().invoke(main, ["explain", str(file), ARM]).stdout
    )
    unknown = CliRunner().invoke(main, ["explain", "one", "demos-9", "--storage", state.storage.uri])
    assert unknown.exit_code == 2
    assert f"demos-9 is no arm of it; there are {ARM}" in unknown.stderr


def test_run_on_another_device_announces_repeated_scoring(state: SweepState) -> None:
    lines = list[str]()
    run = SweepRun(state.sweep, lines.append)
    (before,) = run.board.arms.values()
    assert before.scores
    run._act_on("cpu")
    assert not lines
    run._act_on("H200")
    assert lines == [
        "checkpoints act on H200, earlier on cpu: scores of the two are not mixed, so they are played again"
        " on H200"
    ]
    (after,) = run.board.arms.values()
    assert (after.step, after.scores) == (10, {})
    assert SweepState.named("one", state.storage.uri).device == "H200"
