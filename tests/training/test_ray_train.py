"""Training one arm: a resumed run equals the uninterrupted one; two workers share the clips and agree."""

import json
import shutil
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checkpoint_folder import CheckpointFolder
from orchestrator.checkpoints.reader import is_complete
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import load_manifest
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import make_episode_store
from orchestrator.training.control_channel import StopRequest, open_control_channel, receiving
from orchestrator.training.loop import TrainJob, train
from orchestrator.training.ray_train import fit
from orchestrator.training.train_events import Reported, Retried, TrainEvent
from orchestrator.training.worker_usage import USAGE, WorkerUsage
from policy.checkpoint import fingerprint, load, load_card, load_trainer, load_weights
from policy.config import Recipe
from policy.presets import PRESETS
from policy.trainer import learning_rate_factor
from selected_episodes import selected


def job(store: Path, steps: int = 6, workers: int = 1, ratio: float = 1.0) -> TrainJob:
    settings = Train(steps=steps, batch_size=4, checkpoint_every=3, warmup_steps=2, workers=workers)
    arm = Arm(3, ratio, 0)
    return TrainJob(
        arm,
        f"arm-{workers}-{steps}",
        str(store),
        1,
        selected(store, arm),
        PRESETS["tiny"],
        settings,
        "joint",
        "none",
    )


def reported(run: str, step: int, checkpoint: str = "") -> Reported:
    return Reported(
        run=run,
        step=step,
        loss=0.5,
        loss_video=0.25,
        loss_action=0.25,
        clips_with_actions=3 * step,
        clips_action_free=step,
        action_free_ratio_consumed=1 / 3,
        usage=WorkerUsage(cpu_s=1.5, bytes_read=7, clips=4),
        checkpoint=checkpoint,
    )


@pytest.mark.parametrize("checkpoint", ["", "a fingerprint"])
def test_report_from_metrics_is_the_report_with_or_without_usage(
    checkpoint: str,
) -> None:
    report = reported("arm", 6, checkpoint)
    assert Reported.from_metrics("arm", json.loads(json.dumps(report.to_metrics()))) == report
    noted = report.metrics | {
        "step": 6,
        "checkpoint": "a fingerprint",
    }  # as `train_snapshot.repair` has them
    without = replace(report, usage=WorkerUsage(), checkpoint="a fingerprint")
    assert Reported.from_metrics("arm", noted) == without
    with pytest.raises(KeyError, match="loss_video"):
        Reported.from_metrics("arm", {"step": 6, "loss": 0.5})


def without_spent(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics without what was spent."""
    return {name: value for name, value in metrics.items() if name not in USAGE}


@pytest.fixture
def _no_ray() -> None:
    """Limit torch to one thread; the plain loop needs no Ray, since `train` fetches straight from the
    store.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(lift_store: Path, tmp_path_factory: pytest.TempPathFactory) -> CheckpointFolder:
    """Return the checkpoints and reports of an uninterrupted run of six steps."""
    torch.set_num_threads(1)
    kept = CheckpointFolder(tmp_path_factory.mktemp("whole"))
    train(job(lift_store), 0, 1, None, kept)
    return kept


@pytest.mark.sim
@pytest.mark.usefixtures("_no_ray")
def test_train_resumed_equals_the_uninterrupted_run(
    lift_store: Path, tmp_path: Path, whole: CheckpointFolder
) -> None:
    rest = CheckpointFolder(tmp_path)
    train(job(lift_store), 0, 1, whole.folder / "step_000003", rest)
    assert [step for step, _ in whole.reports if step > 3] == [step for step, _ in rest.reports]
    assert [without_spent(m) for step, m in whole.reports if step > 3] == [
        without_spent(m) for _, m in rest.reports
    ]
    ours, theirs = (load_trainer(kept.folder / "step_000006") for kept in (whole, rest))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.sim
@pytest.mark.usefixtures("_no_ray")
def test_train_reports_hold_the_usage_since_the_last_and_checkpoints_none(
    lift_store: Path, tmp_path: Path
) -> None:
    kept = CheckpointFolder(tmp_path)
    cpu, wall = time.process_time(), time.perf_counter()
    train(job(lift_store), 0, 1, None, kept)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    told = [[metrics[name] for name in USAGE] for _, metrics in kept.reports]
    assert all(cpu_s > 0 and wall_s > 0 for cpu_s, wall_s, *_ in told)
    sums = [sum(column) for column in zip(*told, strict=True)]
    assert 0.9 * cpu < sums[0] <= cpu
    assert 0.9 * wall < sums[1] <= wall
    manifest = load_manifest(open_storage(str(lift_store)))
    opened = {
        draw.visit.entry.sha256 for draw in islice(job(lift_store).order(manifest, 0, 1).walk(0), 6 * 4)
    }
    assert sums[2] == sum(entry.nbytes for entry in manifest.entries if entry.sha256 in opened), (
        "each episode is fetched once"
    )
    clips, steps, step_s, stall_s = sums[3:]
    assert (clips, steps) == (6 * 4, 6)
    assert 0 < step_s < wall
    assert 0 < stall_s < wall - step_s
    assert not set(USAGE) & set(load_card(tmp_path / "step_000006").provenance)


@pytest.mark.sim
@pytest.mark.usefixtures("_no_ray")
def test_train_paused_at_any_step_resumes_as_if_uninterrupted(
    lift_store: Path, tmp_path: Path, whole: CheckpointFolder
) -> None:
    paused, stopped = CheckpointFolder(tmp_path / "paused"), CheckpointFolder(tmp_path / "stopped")
    for kept in (paused, stopped):
        kept.folder.mkdir()
    requests = iter([None, None, None, StopRequest.PAUSE])
    train(job(lift_store), 0, 1, None, paused, stop_request=lambda: next(requests))
    assert paused.reports[-1][0] == 4
    train(job(lift_store), 0, 1, paused.folder / "step_000004", paused)
    ours, theirs = (load_trainer(kept.folder / "step_000006") for kept in (whole, paused))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert fingerprint(whole.folder / "step_000006") == fingerprint(paused.folder / "step_000006")
    train(job(lift_store), 0, 1, None, stopped, stop_request=lambda: StopRequest.STOP)
    assert [step for step, _ in stopped.reports] == [1]
    assert not any(stopped.folder.iterdir()), "a stopped arm saves no checkpoint"


@pytest.mark.sim
@pytest.mark.usefixtures("_no_ray")
def test_train_extended_to_more_steps_equals_the_longer_run(lift_store: Path, tmp_path: Path) -> None:
    """With a constant learning rate, under which both are the same arm."""
    once, longer = CheckpointFolder(tmp_path / "once"), CheckpointFolder(tmp_path / "longer")
    for kept in (once, longer):
        kept.folder.mkdir()
    long = job(lift_store, steps=8)
    long = replace(long, train=long.train.model_copy(update={"schedule": "constant"}))
    short = replace(
        long, train=long.train.model_copy(update={"steps": 5, "checkpoint_every": 2, "feature_cache_mb": 0})
    )
    assert short.train.shaping() == long.train.shaping()
    train(long, 0, 1, None, once)
    train(short, 0, 1, None, longer)
    assert [step for step, metrics in longer.reports if "checkpoint" in metrics] == [2, 4, 5]
    train(long, 0, 1, longer.folder / "step_000005", longer)
    ours, theirs = (load_trainer(kept.folder / "step_000008") for kept in (once, longer))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert fingerprint(once.folder / "step_000008") == fingerprint(longer.folder / "step_000008")


@pytest.mark.sim
@pytest.mark.usefixtures("_no_ray")
def test_checkpoint_provenance_names_its_data(lift_store: Path, tmp_path: Path) -> None:
    kept = CheckpointFolder(tmp_path)
    train(job(lift_store, steps=3), 0, 1, None, kept)
    card = load_card(tmp_path / "step_000003")
    manifest = load_manifest(open_storage(str(lift_store)))
    assert card.contract == manifest.contract
    assert card.provenance["data_fingerprint"] == manifest.fingerprint
    assert len(card.provenance["demos"]) == len(card.provenance["action_free"]) == 3
    assert card.provenance["step"] == 3
    assert card.action_stats.count == sum(manifest[i].length for i in card.provenance["demos"]), (
        "statistics must come from the demos alone"
    )
    assert kept.reports[-1][1]["checkpoint"] == fingerprint(tmp_path / "step_000003")


@pytest.mark.sim
@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize(("ratio", "with_actions", "action_free"), [(0.0, 12, 0), (1.0, 6, 6), (1 / 3, 9, 3)])
def test_train_counts_consumed_clips_at_the_requested_ratio(
    lift_store: Path, tmp_path: Path, ratio: float, with_actions: int, action_free: int
) -> None:
    kept = CheckpointFolder(tmp_path)
    train(job(lift_store, steps=3, ratio=ratio), 0, 1, None, kept)
    told = kept.reports[-1][1]
    assert (told["clips_with_actions"], told["clips_action_free"]) == (with_actions, action_free)
    assert told["action_free_ratio_consumed"] == pytest.approx(ratio)
    assert load_card(tmp_path / "step_000003").provenance["clips_action_free"] == action_free


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.ray
def test_fit_with_two_workers_trains_one_model_and_pauses_at_one_step(
    lift_store: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """Ray Data streams to both, gloo averages their gradients, the first one's checkpoint is whole; on a
    pause request both end at the same step.
    """
    import ray

    asked = job(lift_store, steps=20, workers=2)
    asked = replace(asked, train=asked.train.model_copy(update={"checkpoint_every": 10}))
    events: list[TrainEvent] = []
    with open_control_channel() as channel, receiving(channel, events.append):
        ray.get(channel.put_job.remote(asked.arm_id, asked))
        ray.get(channel.request_stop.remote(asked.arm_id, StopRequest.PAUSE))
        paused = fit(asked, str(tmp_path), {"CPU": 0.5}, channel)
        assert 1 <= paused[-1].step < 20, "it went on to the end"
        ray.get(channel.put_job.remote(asked.arm_id, asked))  # which clears the request
        reported = fit(asked, str(tmp_path), {"CPU": 0.5}, channel)
        assert [report.step for report in reported] == [paused[-1].step, 10, 20]
        assert {event.run for event in events} == {asked.arm_id}
        sent = {event.step: event for event in events if isinstance(event, Reported)}
        for report in reported:
            assert replace(sent[report.step], usage=report.usage) == report
            assert sent[report.step].usage.clips == 2 * report.usage.clips, "the sum of two workers"
        model, card = load(tmp_path / asked.arm_id / "step_000020")
        assert card.provenance["step"] == 20
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        # Continued by the same call, a finished run does nothing and still tells its checkpoints.
        assert fit(asked, str(tmp_path), {"CPU": 0.5}, channel) == reported


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.ray
def test_fit_keeps_frozen_weights_once_and_resumes_after_older_checkpoints_went(
    lift_store: Path, tmp_path: Path, ray_cluster: None
) -> None:
    arm = job(lift_store, steps=4)
    recipe = arm.train.model_copy(update={"checkpoint_every": 2, "schedule": "constant"})
    arm = replace(arm, arm_id="head", objective="action", train=recipe)
    storage, events = open_storage(str(tmp_path)), list[TrainEvent]()
    with open_control_channel() as channel, receiving(channel, events.append):
        first = fit(arm, f"{storage.uri}/arms", {"CPU": 0.5}, channel)
        for key in storage.list("arms/head/step_000002/"):
            storage.delete(key)
        longer = replace(arm, train=recipe.model_copy(update={"steps": 6}))
        second = fit(longer, f"{storage.uri}/arms", {"CPU": 0.5}, channel)
    assert [report.step for report in first] == [2, 4]
    assert [report.step for report in second] == [4, 6]
    assert not [event for event in events if isinstance(event, Retried)], "nothing is said to be damaged"
    assert len(storage.list("frozen/")) == 1
    for report in second:
        place = f"{storage.uri}/arms/head/step_{report.step:06d}"
        assert is_complete(place, report.checkpoint)
        assert not (Path(place) / "unet/diffusion_pytorch_model.safetensors").exists()
    whole = CheckpointFolder(tmp_path / "whole")
    whole.folder.mkdir()
    train(longer, 0, 1, None, whole)
    ours, theirs = load_weights(whole.folder / "step_000006"), load(Path(place))[0].state_dict()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.stress
@pytest.mark.sim
@pytest.mark.ray
def test_fit_with_decoding_on_the_cluster_saves_the_same_checkpoints(
    lift_store: Path, tmp_path: Path, ray_cluster: None
) -> None:
    fingerprints = []
    for decode in ("trainer", "cluster"):
        arm = replace(job(lift_store), decode=decode)
        with open_control_channel() as channel:
            reported = fit(arm, str(tmp_path / decode), {"CPU": 0.5}, channel)
        fingerprints.append([report.checkpoint for report in reported])
        assert [report.step for report in reported] == [3, 6]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.full
@pytest.mark.sim
@pytest.mark.ray
def test_fit_with_a_damaged_episode_raises_without_retries(
    lift_store: Path, tmp_path: Path, ray_cluster: None
) -> None:
    store = tmp_path / "store"
    shutil.copytree(lift_store, store)
    manifest = load_manifest(open_storage(str(store)))
    victim = manifest[selected(store, Arm(1, 0, 0)).demos[0]]
    data = (store / victim.key).read_bytes()
    (store / victim.key).write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    arm = Arm(1, 0, 0)
    damaged = replace(job(store, ratio=0), arm=arm, subset=selected(store, arm), arm_id="damaged")
    with (
        open_control_channel() as channel,
        pytest.raises(
            EpisodeError, match=f"^{store}: episode {victim.episode_id} is damaged; restore {victim.key}$"
        ),
    ):
        fit(damaged, str(tmp_path / "arms"), {"CPU": 0.5}, channel, attempts=3)


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    factors = [learning_rate_factor(step, Recipe(warmup_steps=10), 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1, rel=1e-3)
    assert max(factors) == pytest.approx(1, abs=0.03)
    assert factors[-1] < 0.001
    assert learning_rate_factor(0, Recipe(warmup_steps=0), 100) == 1
    assert learning_rate_factor(99, Recipe(schedule="constant"), 100) == 1


def test_fit_retries_after_controller_and_storage_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.train
    import ray.train.torch
    from ray.exceptions import ActorDiedError

    arm = job(Path(make_episode_store(tmp_path / "store", 8)))
    report = reported(arm.arm_id, 6)
    failures = [
        ray.train.ControllerError(OSError("it is away")),
        ActorDiedError(),
        OSError("it is away"),
        None,
    ]

    class Trainer:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> Any:
            if failure := failures.pop(0):
                raise failure
            return SimpleNamespace(best_checkpoints=[(None, report.to_metrics())])

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    events: list[Retried] = []
    channel = SimpleNamespace(send=SimpleNamespace(remote=events.append))
    assert fit(arm, str(tmp_path), {"CPU": 0.5}, channel, attempts=4) == [report]
    assert [(type(event), event.run) for event in events] == 3 * [(Retried, arm.arm_id)]
    assert "it is away" in events[2].cause.splitlines()[-1]
    failures += [OSError("it is away")] * 2
    with pytest.raises(OSError, match="it is away"):
        fit(arm, str(tmp_path), {"CPU": 0.5}, channel, attempts=2)
