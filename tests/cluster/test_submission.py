"""What is submitted to a cluster. With a real cluster: test_submission_on_cluster.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from conftest import CHECKOUT

from external_policies import make_policy
from orchestrator import provenance
from orchestrator.cluster import code_bundle as staging
from orchestrator.cluster.code_bundle import CodeBundleError, code_bundle, shipped_files
from orchestrator.cluster.preflight import check_sweep, warnings_for
from orchestrator.cluster.ray_jobs import JobSpec, _metadata, _runtime_env
from orchestrator.cluster.submission import sweep_load
from orchestrator.cluster.version_check import PYTHONS, differing, pins, to_install
from orchestrator.code_fingerprint import SCORING_CODE, TRAINING_CODE, code_fingerprint
from orchestrator.config.lines import PolicyChoice
from orchestrator.config.policy_manifest import ManifestError, load
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.redaction import redact

REMOTE = (
    "data.episodes=s3://robot-data/lift",
    "storage=s3://results/lift",
    "mlflow=https://mlflow.example.org",
)


def quickstart(*overrides: str) -> SweepConfig:
    return SweepConfig.load(CHECKOUT / "jobs" / "quickstart.yaml", (*REMOTE, *overrides))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.episodes=data/lift", "data.episodes: data/lift is a folder of this machine; name s3://"),
        ("data.episodes=file:data/lift", "data.episodes: file:data/lift is a folder of this machine"),
        ("storage=runs", "storage: runs is a folder of this machine; name s3://"),
        (
            "mlflow=''",
            (
                "mlflow: empty, so its database would be on the disk of the cluster's head and be deleted with it;"
                " name a tracking server"
            ),
        ),
        ("mlflow=sqlite:///runs/mlflow.db", "mlflow: sqlite:///runs/mlflow.db is a place on this machine"),
        ("mlflow=mlruns", "mlflow: mlruns is a place on this machine"),
        (f"policy.weights={os.path.relpath(CHECKOUT / 'policy')}", "policy.weights: "),
    ],
)
def test_check_sweep_refuses_local_places_with_the_remedy(override: str, sentence: str) -> None:
    assert check_sweep(quickstart()) == []
    (problem,) = check_sweep(quickstart(override))
    assert problem.startswith(sentence)


def test_check_sweep_accepts_shared_folders_with_a_warning() -> None:
    shared = quickstart("data.episodes=/shared/lift", "storage=/shared/results", "mlflow=''")
    assert check_sweep(shared) == []
    assert warnings_for(shared) == [
        "data.episodes (/shared/lift) and storage (/shared/results) must be on a file system that all nodes"
        " share"
    ]
    assert warnings_for(quickstart()) == []
    assert (
        "means the cluster's head, not this machine"
        in warnings_for(quickstart("mlflow=http://localhost:5000"))[0]
    )


SECRET = "hunter2"
SECRETS = [
    f"mlflow=https://me:{SECRET}@mlflow.example.org",
    f"mlflow=https://{SECRET}@mlflow.example.org",
    f"mlflow=postgresql://me:{SECRET}@db/mlflow",
    f"mlflow=postgresql://db/mlflow?user=me&password={SECRET}",
    f"storage=s3://me:{SECRET}@results/lift",
    f"mlflow=https://mlflow.example.org/?X-Amz-Signature={SECRET}",
]


@pytest.mark.parametrize("override", SECRETS)
def test_sweep_with_credentials_is_refused_without_them(override: str) -> None:
    with pytest.raises(SweepError) as refused:
        quickstart(override)
    (problem,) = refused.value.problems
    assert problem.startswith(override.partition("=")[0] + ": it holds credentials")
    assert SECRET not in str(refused.value)
    assert SECRET not in redact(override)


def test_code_bundle_holds_the_packages_whole_and_small() -> None:
    sweep = quickstart("seeds=[0,1]", "train.steps=7")
    with code_bundle({"sweep.yaml": sweep.to_yaml()}) as sent:
        there = {
            file.relative_to(sent.folder).as_posix() for file in sent.folder.rglob("*") if file.is_file()
        }
        assert {path.partition("/")[0] for path in there} == {*staging.SHIPPED, "sweep.yaml"}
        assert not [
            path
            for path in there
            if "__pycache__" in path or path.endswith((".pyc", ".db", ".mp4", ".parquet"))
        ]
        assert sent.files == len(there)
        assert sent.nbytes < 20 * 2**20
        assert SweepConfig.load(sent.folder / "sweep.yaml") == sweep, (
            "the cluster runs what was validated here"
        )
        told = "from orchestrator.code_fingerprint import *; from orchestrator.provenance import git_commit; "
        told += "print(code_fingerprint(TRAINING_CODE), code_fingerprint(SCORING_CODE), git_commit())"
        environment = {"PATH": os.environ["PATH"], provenance.COMMIT: "0123456789ab"}
        done = subprocess.run(
            [sys.executable, "-c", told],
            cwd=sent.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    mine = [code_fingerprint(code) for code in (TRAINING_CODE, SCORING_CODE)]
    assert done.stdout.split() == [
        *mine,
        "0123456789ab",
    ], "a result of the cluster has the code fingerprint of this machine"
    assert not sent.folder.exists()


def test_git_commit_in_a_checkout_is_that_of_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMIT, "made-up")
    provenance.git_commit.cache_clear()
    assert provenance.git_commit() != "made-up"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a small checkout with files that must not be submitted."""
    for name in (
        "jobs/a.py",
        "policy/pretrained/w.safetensors",
        "jobs/new.py",
        "jobs/.env",
        "jobs/key.pem",
        "data/e.parquet",
        ".venv/b.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SECRET)
    (tmp_path / "policy/__pycache__").mkdir()
    (tmp_path / "policy/__pycache__/c.pyc").touch()
    return tmp_path


def test_shipped_files_in_a_git_checkout_are_tracked_and_new_modules(checkout: Path) -> None:
    subprocess.run(
        "git init -q . && git add jobs/a.py policy/pretrained data", shell=True, cwd=checkout, check=True
    )
    assert [file.as_posix() for file in shipped_files(checkout)] == [
        "jobs/a.py",
        "jobs/new.py",
        "policy/pretrained/w.safetensors",
    ]


def test_shipped_files_without_git_omit_caches_and_hidden_files(checkout: Path) -> None:
    assert sorted(file.as_posix() for file in shipped_files(checkout)) == [
        "jobs/a.py",
        "jobs/key.pem",
        "jobs/new.py",
        "policy/pretrained/w.safetensors",
    ]


def test_policy_of_a_sweep_is_sent_whole_although_git_does_not_track_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run("git init -q . && git add jobs/a.py", shell=True, cwd=checkout, check=True)
    policies = checkout / "policies"
    make_policy(policies / "mine", manifest="include: [../shared]\n")
    for name in ("mine/tables.bin", "mine/.env", "mine/__pycache__/a.pyc", "shared/a.py", "other/b.bin"):
        (policies / name).parent.mkdir(exist_ok=True)
        (policies / name).write_bytes(b"\xff\x00")
    monkeypatch.chdir(checkout)
    policy = {"lines": ["policies/mine", "video_action", {"name": "again", "policy": "./policies/mine"}]}
    sweep = quickstart().model_copy(update={"policy": PolicyChoice.model_validate(policy)})
    _, texts = sweep_load(sweep, checkout)
    with code_bundle(texts, checkout) as sent:
        there = {
            file.relative_to(sent.folder).as_posix() for file in sent.folder.rglob("*") if file.is_file()
        }
        assert {name for name in there if name.startswith("policies/")} == {
            *(f"policies/mine/{name}" for name in ("policy.yaml", "train.py", "serve.py", "tables.bin")),
            "policies/shared/a.py",
        }
        assert load(sent.folder / "policies/mine").fingerprint() == load(policies / "mine").fingerprint()
    (policies / "mine" / "weights.bin").write_bytes(bytes(17 << 20))
    with pytest.raises(ManifestError, match="500 files or 16 MiB; keep data and weights elsewhere"):
        sweep_load(sweep, checkout)


def test_code_bundle_over_the_limit_names_the_largest_file(checkout: Path) -> None:
    (checkout / "jobs" / "big.py").write_bytes(bytes(2**21))
    sentence = r"2 MiB would be sent.*the largest file is jobs/big.py \(2 MiB\)"
    with pytest.raises(CodeBundleError, match=sentence), code_bundle({}, checkout, limit_bytes=2**20):
        pass


def test_runtime_env_holds_nothing_of_the_local_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    load = JobSpec("sweep", "lift", "s3://results/lift", "0", "python -m jobs.sweep sweep.yaml")
    sent = _runtime_env(Path("/code"), pip=True) | _metadata(load)
    assert SECRET not in str(sent)
    assert set(sent["env_vars"]) == {provenance.COMMIT, "RAY_JOB_STOP_WAIT_TIME_S"}
    assert int(sent["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 300


def test_job_stem_depends_on_the_storage_and_not_on_settings() -> None:
    one, same, other = (
        JobSpec("sweep", "lift", place, settings, "")
        for place, settings in (("s3://a", "1"), ("s3://a", "2"), ("s3://b", "1"))
    )
    assert one.stem == same.stem != other.stem
    assert re.fullmatch(r"demoscale-lift-[0-9a-f]{8}", one.stem)


def test_differing_lists_versions_that_differ() -> None:
    assert differing(pins()) == []
    assert differing({"torch": "1.0", "no-such-package": "3"})[1] == "no-such-package missing instead of 3"
    assert differing({"torch": "1.0"})[0].endswith("instead of 1.0")
    assert pins()["ray"] == ray.__version__
    assert all(
        re.search(rf"\b{major}\.{minor}\b|<{major}\.{minor + 1}\b", (CHECKOUT / "pyproject.toml").read_text())
        for major, minor in PYTHONS
    )
    installed = to_install()
    assert f"torch=={pins()['torch']}" in installed
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==\S+", line) for line in installed)
    assert not any(line.startswith("ray==") for line in installed)


def test_version_check_on_a_head_without_the_pinned_packages_exits_two() -> None:
    with code_bundle({}) as sent:
        project = sent.folder / "pyproject.toml"
        project.write_text(project.read_text().replace('"numpy==', '"numpy==9'))
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cluster.version_check"],
            cwd=sent.folder,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert re.fullmatch(
        r"nothing was started: the cluster has numpy \S+ instead of 9\S+; run the cluster on an image"
        r" .*--pip.*\n",
        done.stderr,
    )


def test_ray_job_submission_is_imported_by_one_file() -> None:
    users = [
        file.name
        for room in ("jobs", "orchestrator", "policy", "sim_workers")
        for file in (CHECKOUT / room).rglob("*.py")
        if "ray.job_submission import" in file.read_text()
    ]
    assert users == ["ray_jobs.py"]
