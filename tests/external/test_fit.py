"""Training of an external policy: what is stored, resumed, retried and ended, in this process and on Ray."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from external_policies import WHOLE, make_job, make_policy
from orchestrator.checkpoints.external_card import ExternalCard
from orchestrator.checkpoints.reader import fetch, is_complete
from orchestrator.config.schema import Train
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.merged_store import StorePart, merge, publish_merged
from orchestrator.data.subset import Subset
from orchestrator.external.command import CommandError, CommandRefusedError
from orchestrator.external.fit import fit_external, run_training
from orchestrator.external.job import ExternalJob
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode_store
from orchestrator.training.control_channel import StopRequest, open_control_channel, receiving
from orchestrator.training.train_events import Reported, Retried, TrainEvent
from policy.checkpoint_files import fingerprint
from sim_workers.checkout import CodeChangedError, file_hashes

ONE = {"CPU": 1.0}


@pytest.fixture
def arms(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "runs" / "arms"))


@pytest.fixture
def make(tmp_path: Path, store: str) -> Callable[..., ExternalJob]:
    """Return a factory of jobs: the policy's training program, and changes of the job."""

    def make(program: str = WHOLE, manifest: str = "", **changes: Any) -> ExternalJob:
        policy = make_policy(tmp_path / "policies" / "counter", program, manifest=manifest)
        return make_job(policy, store, tmp_path / "runs", arm_id=tmp_path.name, **changes)

    return make


def trained(job: ExternalJob, arms: Storage, stop: Any = lambda: None) -> list[Reported]:
    reports = list[Reported]()
    run_training(job, arms, ONE, reports.append, stop)
    return reports


def weights(arms: Storage, job: ExternalJob, step: int) -> Any:
    return json.loads(arms.get(f"{job.arm_id}/step_{step:06d}/weights/weights.json"))


def test_training_stores_checkpoints_with_their_programs_and_reports_usage(
    make: Callable[..., ExternalJob], arms: Storage, tmp_path: Path
) -> None:
    job = make()
    began = time.perf_counter()
    reports = trained(job, arms)
    spent = time.perf_counter() - began
    assert [(report.step, bool(report.checkpoint)) for report in reports] == [
        (step, step % 2 == 0) for step in range(1, 7)
    ]
    assert [report.loss for report in reports] == [1 / step for step in range(1, 7)]
    assert all((report.loss_video, report.loss_action) == (0, report.loss) for report in reports)
    usage = [report.usage for report in reports]
    assert 0.5 * spent < sum(one.wall_s for one in usage) < spent
    assert sum(one.clips for one in usage) == 4 * sum(one.steps for one in usage) == 4 * 6
    assert sum(one.cpu_s for one in usage) > 0
    for report in reports[1::2]:
        place = f"{arms.uri}/{job.arm_id}/step_{report.step:06d}"
        assert is_complete(place, report.checkpoint)
    card = ExternalCard.read(open_storage(place))
    assert (card.policy, card.step, card.contract) == ("counter", 6, CONTRACT)
    assert card.policy_fingerprint == job.fingerprint
    assert card.provenance["demos"] == list(job.subset.demos)
    assert card.provenance["action_free"] == []
    assert [*card.files] == [
        "policy/policy.yaml",
        "policy/serve.py",
        "policy/train.py",
        "weights/weights.json",
    ]
    fetch(place, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == reports[-1].checkpoint
    assert arms.get(f"{job.arm_id}/logs/000001.log") == b"training from 0\n"
    assert trained(replace(job, arm_id=f"{job.arm_id}-again"), arms)[-1].checkpoint != "", "equal work"


def test_training_goes_on_from_the_newest_whole_checkpoint(
    make: Callable[..., ExternalJob], arms: Storage
) -> None:
    with pytest.raises(CommandError, match="exit code 3 after step 5 of 6"):
        trained(
            make(WHOLE.replace("else:", "elif step == 5: report(step=5, loss=1); sys.exit(3)\n    else:")),
            arms,
        )
    # the process was killed while the next one was stored
    arms.put(f"{make().arm_id}/step_000006/weights/weights.json", b"half")
    job = make()
    assert [report.step for report in trained(job, arms)] == [5, 6]
    assert weights(arms, job, 6) == {"step": 6, "seed": 1, "from": 4}


def test_pause_stores_a_checkpoint_and_the_next_run_goes_on_from_it(
    make: Callable[..., ExternalJob], arms: Storage
) -> None:
    job = make(
        WHOLE.replace("else:", "else:\n        time.sleep(0.3)"), train=Train(steps=40, checkpoint_every=40)
    )
    reports = list[Reported]()
    run_training(job, arms, ONE, reports.append, lambda: StopRequest.PAUSE if reports else None)
    paused = reports[-1]
    assert paused.checkpoint
    assert 0 < paused.step < 40
    job = make(WHOLE, train=Train(steps=40, checkpoint_every=40))
    assert weights(arms, job, paused.step)["step"] == paused.step
    assert trained(job, arms)[-1].step == 40
    assert weights(arms, job, 40)["from"] == paused.step


def test_checkpoint_changed_after_its_report_is_refused(
    make: Callable[..., ExternalJob], arms: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.external import fit

    def store_slowly(stage: Path, *arguments: Any) -> None:
        time.sleep(0.01)
        (stage / "weights" / "weights.json").write_text("{}")  # a hard link: the command's own file

    monkeypatch.setattr(fit, "store", store_slowly)
    with pytest.raises(CommandError, match="changed the checkpoint of step 2 after it had reported it"):
        trained(make(), arms)
    assert not arms.list(f"{make().arm_id}/reports/")


def test_policy_that_cannot_use_the_episodes_is_refused_before_anything_runs(
    make: Callable[..., ExternalJob], arms: Storage
) -> None:
    job = make(manifest="wants: {cameras: 2}\n")
    with pytest.raises(
        CommandRefusedError, match=r"counter: it takes 2 cameras, the episodes have 1 \(robot0_eye"
    ):
        trained(job, arms)
    assert not arms.list("")


def test_edited_code_is_refused(make: Callable[..., ExternalJob], arms: Storage) -> None:
    with pytest.raises(CodeChangedError):
        trained(make(code=file_hashes() | {"orchestrator/external/fit.py": "another"}), arms)


def test_training_command_gets_no_credentials_of_ours_and_the_documented_fields(
    make: Callable[..., ExternalJob], arms: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2secret")
    job = make(
        'print(json.dumps({"job": job, "env": dict(os.environ)}))\nsave(6)',
        "variables: {HF_HUB_OFFLINE: '1'}\naction_free: true\nunderstands: [seed, weight_decay]\n",
    )
    trained(job, arms)
    said = json.loads(arms.get(f"{job.arm_id}/logs/000001.log").splitlines()[-1])
    assert "hunter2secret" not in json.dumps(said)
    assert said["env"]["HF_HUB_OFFLINE"] == "1"
    described = said["job"]
    assert (described["episodes"], described["frames"]) == (6, 72)
    assert described["knobs"] == {"steps": 6, "seed": 1, "weight_decay": 0.0001}
    assert described["contract"] == CONTRACT.to_json() | {"cameras": [*CONTRACT.cameras]} | {
        name: [*getattr(CONTRACT, name)] for name in ("image_size", "proprio", "action")
    }
    assert {
        name: described[name]
        for name in (
            "version",
            "format",
            "resume",
            "first_step",
            "steps",
            "seconds",
            "first_second",
            "checkpoint_every",
            "weights",
            "device",
            "threads",
        )
    } == {
        "version": 1,
        "format": "lerobot_v3",
        "resume": "",
        "first_step": 0,
        "steps": 6,
        "seconds": 0,
        "first_second": 0,
        "checkpoint_every": 2,
        "weights": [],
        "device": "cpu",
        "threads": 1,
    }


def test_training_command_gets_weights_of_stores_and_chosen_proprioception(
    make: Callable[..., ExternalJob], arms: Storage, tmp_path: Path
) -> None:
    stores = [make_episode_store(tmp_path / name, 4, length=n) for name, n in (("a", 8), ("b", 12))]
    parts = [StorePart(store=one, weight=weight) for one, weight in zip(stores, (3, 1), strict=True)]
    merged = publish_merged(open_storage(str(tmp_path / "runs")), merge(parts))
    ids = load_manifest(open_storage(merged)).episode_ids
    says = "print(json.dumps(job))\nsave(6)"
    job = make(says, episodes=merged, subset=Subset((ids[0], ids[4]), ()), proprio=(7, 8))
    trained(job, arms)
    said = json.loads(arms.get(f"{job.arm_id}/logs/000001.log").splitlines()[-1])
    assert said["weights"] == [0.75, 0.25]
    assert said["contract"]["proprio"] == [*CONTRACT.proprio[7:]]
    card = ExternalCard.read(open_storage(f"{arms.uri}/{job.arm_id}/step_000006"))
    assert card.contract.proprio == CONTRACT.proprio[7:]
    with pytest.raises(CommandRefusedError, match="it takes proprioception, and the episodes have none"):
        trained(make(says, "wants: {proprio: required}\n", proprio=()), arms)


TIMED = """
seconds = job["first_second"]
step = first
while seconds < job["seconds"]:
    before, seconds, step = seconds, seconds + 0.75, step + 1
    if stopped or seconds >= job["seconds"] or seconds // job["checkpoint_every"] > before // job["checkpoint_every"]:
        folder = pathlib.Path(job["checkpoints"], f"step_{step:06d}")
        folder.mkdir()
        (folder / "weights.json").write_text(json.dumps({"step": step, "seconds": seconds}))
        report(step=step, loss=1, seconds=seconds, checkpoint=folder.name)
        if stopped:
            sys.exit()
    else:
        report(step=step, loss=1, seconds=seconds)
"""
"""Trains until its time is used up, on a clock of its own."""


@pytest.mark.parametrize(("gpus", "saved"), [(0, [(3, 4), (4, 6)]), (2, [(3, 2), (4, 3)])])
def test_training_by_time_ends_at_its_budget_and_resumes_with_what_is_left(
    make: Callable[..., ExternalJob], arms: Storage, gpus: int, saved: list[tuple[int, int]], tmp_path: Path
) -> None:
    manifest = f"understands: [seconds]\nresources: {{gpus: {gpus}}}\n"
    train = Train(match="gpu_seconds", seconds=4, checkpoint_every=3)
    job = make(TIMED, manifest, train=train)
    resources = {**ONE, "GPU": float(gpus)} if gpus else ONE
    reports = list[Reported]()
    run_training(job, arms, resources, reports.append)
    checkpoints = [(report.step, report.optimiser_steps) for report in reports if report.checkpoint]
    assert checkpoints == saved
    card = ExternalCard.read(open_storage(f"{arms.uri}/{job.arm_id}/step_000003")).provenance
    assert card["optimiser_steps"] == saved[0][1]
    assert card["seconds"] == pytest.approx(0.75 * saved[0][1] * max(1, gpus), abs=1e-3)
    assert card["knobs"]["seconds"] == 4
    # it was killed after its first checkpoint
    for step, _ in saved[1:]:
        (tmp_path / f"runs/arms/{job.arm_id}/reports/step_{step:06d}.json").unlink()
    again = list[Reported]()
    run_training(job, arms, resources, again.append)
    assert [(report.step, report.optimiser_steps) for report in again if report.checkpoint] == saved[1:]


def test_training_by_time_that_ends_early_or_is_paused_keeps_what_it_has(
    make: Callable[..., ExternalJob], arms: Storage
) -> None:
    train = Train(match="gpu_seconds", seconds=60, checkpoint_every=60)
    early = TIMED.replace("while seconds <", "while seconds < 3 <")
    with pytest.raises(
        CommandRefusedError, match=r"after step 4, 3\.0 s of 60 s, with exit code 0; it must go on"
    ):
        trained(make(early, "understands: [seconds]\n", train=train), arms)
    slow = TIMED.replace("    before,", "    time.sleep(0.2)\n    before,")
    reports = list[Reported]()
    job = make(slow, "understands: [seconds]\n", train=train)
    run_training(job, arms, ONE, reports.append, lambda: StopRequest.PAUSE if reports else None)
    (paused,) = [report for report in reports if report.checkpoint]
    assert 0 < paused.step < 60


# -- on Ray --------------------------------------------------------------------------------------------------


@pytest.fixture
def events() -> list[TrainEvent]:
    return []


@pytest.fixture
def channel(ray_cluster: None, events: list[TrainEvent]) -> Iterator[Any]:
    with open_control_channel() as channel, receiving(channel, events.append):
        yield channel


@pytest.mark.full
@pytest.mark.ray
def test_fit_retries_resumes_and_returns_every_checkpoint(
    make: Callable[..., ExternalJob], arms: Storage, channel: Any, events: list[TrainEvent]
) -> None:
    once = 'if step == 5 and first == 0: print("out of luck"); sys.exit(3)\n    '
    job = make(WHOLE.replace("    if stopped", f"    {once}if stopped"), code=file_hashes())
    reports = fit_external(job, arms.uri, ONE, channel, attempts=2)
    assert [report.step for report in reports] == [2, 4, 6]
    wait_for(lambda: any(isinstance(event, Reported) and event.step == 6 for event in events))
    (retried,) = [event for event in events if isinstance(event, Retried)]
    assert re.fullmatch(r"counter: its training ended with exit code 3 .* \| out of luck", retried.cause)
    assert [report.checkpoint for report in reports] == [
        event.checkpoint for event in events if isinstance(event, Reported) and event.checkpoint
    ]
    assert weights(arms, job, 6)["from"] == 4
    assert fit_external(job, arms.uri, ONE, channel) == reports, "nothing is left to do"
    damaged = Path(arms.uri, job.arm_id, "step_000006", "weights", "weights.json")
    damaged.write_text("{}")
    assert [report.step for report in fit_external(job, arms.uri, ONE, channel)] == [2, 4, 6]
    assert json.loads(damaged.read_text())["from"] == 4


@pytest.mark.ray
@pytest.mark.full
def test_fit_raises_a_permanent_failure_at_once_and_another_after_its_attempts(
    make: Callable[..., ExternalJob], arms: Storage, channel: Any, events: list[TrainEvent]
) -> None:
    with pytest.raises(CommandRefusedError, match="the loss at step 1 is nan"):
        fit_external(make('report(step=1, loss=float("nan"))'), arms.uri, ONE, channel, attempts=3)
    with pytest.raises(CommandError, match="exit code 3 after step 0"):
        fit_external(make("sys.exit(3)"), arms.uri, ONE, channel, attempts=2)
    assert len([event for event in events if isinstance(event, Retried)]) == 1
    missing = make(episodes=f"{arms.uri}/nowhere")
    with pytest.raises(EpisodeError, match="version 1 of the store is missing"):
        fit_external(missing, arms.uri, ONE, channel, attempts=3)


@pytest.mark.ray
@pytest.mark.full
def test_death_of_the_training_process_on_ray_ends_the_command_and_is_retried(
    make: Callable[..., ExternalJob], arms: Storage, channel: Any, events: list[TrainEvent], tmp_path: Path
) -> None:
    hang = f"""    pid = pathlib.Path({str(tmp_path / "pid")!r})
    if step == 3 and not pid.exists():
        pid.write_text(str(os.getpid()))
        time.sleep(600)
"""
    job = make(WHOLE.replace("    if stopped", f"{hang}    if stopped"))
    result = list[Reported]()
    thread = threading.Thread(
        target=lambda: result.extend(fit_external(job, arms.uri, ONE, channel, attempts=2)), daemon=True
    )
    thread.start()
    wait_for(lambda: any(isinstance(event, Reported) and event.step == 2 for event in events))
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    command = psutil.Process(int((tmp_path / "pid").read_text()))
    worker = command.parent().parent()  # above the guard
    assert "_train" in " ".join(worker.cmdline())
    worker.kill()
    thread.join(60)
    assert [report.step for report in result] == [2, 4, 6]
    assert not command.is_running() or command.status() == psutil.STATUS_ZOMBIE
    assert weights(arms, job, 6)["from"] == 2


@pytest.mark.ray
@pytest.mark.full
def test_stop_request_reaches_the_command_through_the_channel(
    make: Callable[..., ExternalJob], arms: Storage, channel: Any, events: list[TrainEvent]
) -> None:
    job = make(
        WHOLE.replace("else:", "else:\n        time.sleep(0.3)"), train=Train(steps=400, checkpoint_every=400)
    )

    def ask() -> None:
        wait_for(lambda: any(isinstance(event, Reported) for event in events))
        channel.request_stop.remote(job.arm_id, StopRequest.PAUSE)

    threading.Thread(target=ask, daemon=True).start()
    (report,) = fit_external(job, arms.uri, ONE, channel)
    assert report.step < 400


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
