"""`demoscale score`: any policy on any suite, played once, and the policy server of checkpoints."""

import asyncio
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from installed_package import forget, on_path
from learner_package import install_linear
from orchestrator.checkpoints.record import CheckpointRecord, write_record
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.config.arms import Arm
from orchestrator.config.lines import Line, PolicyChoice
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.policy_ref import _sampler, resolve_policy
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.evaluation.scores import protocol_key
from orchestrator.storage.base import StorageError, download, open_storage
from orchestrator.sweep.state import SweepState, no_such_arm
from orchestrator.testing.checkpoints import TINY, make_checkpoint, make_observation
from orchestrator.testing.episodes import CONTRACT, make_episode_store
from policy.checkpoint import fingerprint
from policy.inference import TrainedPolicy
from policy.presets import learner_config, policy_config
from reporting_sweep import make_sweep
from score_cli import score
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeRules, Suite


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint that a test may damage."""
    return shutil.copytree(made, tmp_path / "checkpoint")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)


# -- the policy server ---------------------------------------------------------------------------------------


def test_policy_server_batches_concurrent_requests_with_unchanged_answers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    act = TrainedPolicy.act
    monkeypatch.setattr(
        TrainedPolicy,
        "act",
        lambda self, observations: sizes.append(len(observations)) or act(self, observations),
    )
    looks = [make_observation(seed) for seed in range(6)]

    async def ask() -> list[np.ndarray]:  # type: ignore[type-arg]
        server = PolicyServer(1, "cpu")
        return [
            chunk.actions
            for chunk in await asyncio.gather(
                *(server.act(CheckpointRef(str(checkpoint)), one) for one in looks)
            )
        ]

    together = asyncio.run(ask())
    assert max(sizes) > 1, "nothing was batched"
    assert sum(sizes) == len(looks)
    policy = TrainedPolicy(checkpoint)
    alone = [act(policy, [one])[0].actions for one in looks]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_policy_server_raises_for_an_unloadable_checkpoint_and_serves_others(
    checkpoint: Path, tmp_path: Path
) -> None:
    async def ask() -> None:
        server = PolicyServer(1, "cpu")
        with pytest.raises(Exception, match="not a demoscale checkpoint"):
            await server.act(CheckpointRef(str(tmp_path / "nothing")), make_observation(0))
        assert (await server.act(CheckpointRef(str(checkpoint)), make_observation(0))).actions.shape == (8, 7)

    asyncio.run(ask())


def test_policy_server_keeps_serving_after_a_policy_answers_too_few(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = TrainedPolicy.act

    async def ask() -> None:
        server = PolicyServer(1, "cpu")
        asked = CheckpointRef(str(checkpoint))
        with monkeypatch.context() as patch:
            patch.setattr(TrainedPolicy, "act", lambda self, observations: act(self, observations)[1:])
            answers = await asyncio.gather(
                *(server.act(asked, make_observation(seed)) for seed in range(2)), return_exceptions=True
            )
            assert all(isinstance(answer, ValueError) for answer in answers)
        assert (await server.act(asked, make_observation(0))).actions.shape == (8, 7)

    asyncio.run(ask())


# -- an untrusted checkpoint ---------------------------------------------------------------------------------


class Bomb:
    """An object whose unpickling creates the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"touch {self._mark}",)


PICKLES = (
    "heads.pt",
    "pytorch_model.bin",
    "policy.pkl",
    "unet/diffusion_pytorch_model.bin",
    "vae/config.pkl",
    "text_encoder/pytorch_model.bin",
)
watched: list[str] = []
"""Every file opened while `watching` is set."""
watching = False
sys.addaudithook(
    lambda event, arguments: watched.append(str(arguments[0])) if watching and event == "open" else None
)


@pytest.mark.parametrize("lacking", ["", "heads.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_pickles_in_a_checkpoint_are_never_opened(
    checkpoint: Path, tmp_path: Path, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the weights that they could replace are missing; the fingerprint is the same with and
    without them.
    """
    mark, before = tmp_path / "mark", fingerprint(checkpoint)
    for name in PICKLES:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(pickle.dumps(Bomb(mark)))
    if lacking:
        (checkpoint / lacking).unlink()
    monkeypatch.setattr(sys.modules[__name__], "watching", True)
    watched.clear()
    from orchestrator.checkpoints.reader import card_of

    known = card_of(str(checkpoint))[1]

    async def act() -> None:
        await PolicyServer(1, "cpu").act(CheckpointRef(str(checkpoint)), make_observation(0))

    if lacking:
        with pytest.raises(
            Exception,
            match=(
                f"^{(checkpoint / lacking).parent}: {Path(lacking).name} is missing; copy the whole folder$"
            ),
        ):
            asyncio.run(act())
    else:
        asyncio.run(act())
        assert known == before
    monkeypatch.undo()
    assert any(file.endswith("checkpoint.json") for file in watched), "the audit hook is not active"
    assert not [file for file in watched if Path(file).suffix in (".pt", ".bin", ".pkl")]
    assert not mark.exists()


def test_checkpoint_with_a_link_out_of_the_folder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    heads, elsewhere = checkpoint / "heads.safetensors", tmp_path / "elsewhere"
    heads.rename(elsewhere)
    heads.symlink_to(elsewhere)
    done = score(checkpoint, "--storage", tmp_path / "runs")
    assert done.exit_code == 1
    assert (
        done.stderr
        == f"{checkpoint}: heads.safetensors is a link out of the folder, to {elsewhere}; copy the file itself"
        " there\n"
    )


def test_download_of_keys_that_escape_the_folder_raises(s3: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for number, key in enumerate(("../evil", f"/{tmp_path}/evil", "unet/../../evil")):
        open_storage(f"{s3}/escape{number}").put(key, b"evil")
        with pytest.raises(StorageError, match="points outside the store"):
            download(f"{s3}/escape{number}", inside)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("card_says", "sentence"),
    [
        ("[]", "checkpoint.json lacks or misstates a field (AttributeError: "),
        ("{", "checkpoint.json is damaged; copy it again"),
        ('{"model_type": "act"}', "checkpoint format None, this version reads 2"),
        ({"contract": 3}, "checkpoint.json lacks or misstates a field (TypeError: "),
        ({"config": {}}, "checkpoint.json lacks or misstates a field (ValidationError: "),
        ({"provenance": {"objective": "video"}}, "a video model without an action head, which cannot act"),
    ],
)
def test_score_of_a_damaged_or_foreign_checkpoint_prints_one_sentence(
    checkpoint: Path, tmp_path: Path, no_ray: None, card_says: str | dict[str, Any], sentence: str
) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(
        card_says if isinstance(card_says, str) else json.dumps(json.loads(file.read_text()) | card_says)
    )
    done = score(checkpoint, "--storage", tmp_path / "runs")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"{checkpoint}: {sentence}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("CHECKPOINT", "--fingerprint", "mine"),
            "CHECKPOINT: a checkpoint has a fingerprint of its own; leave out --fingerprint",
        ),
        (
            ("CHECKPOINT", "--rung", "quick"),
            "has no rung quick; it has faithful, one_pass, truncated, unguided",
        ),
        (("CHECKPOINT", "--suite", "nothing.yaml"), "nothing.yaml: 1 mistake\n  - there is no such file"),
        (("CHECKPOINT", "--suite", "SUITE"), "suite.tasks.0: unknown task Juggle"),
        (("runs/nobody/step_1",), "CHECKPOINT: there is no folder runs/nobody/step_1"),
        (
            ("examples.waypoints:make", "--fingerprint", "../up"),
            "CHECKPOINT: --fingerprint ../up: write letters",
        ),
        (
            ("examples.waypoints:make", "--fingerprint", "0123456789abcdef"),
            "and not 16 hex digits, which name a checkpoint",
        ),
    ],
)
def test_score_mistake_exits_two_before_ray_starts(
    checkpoint: Path, tmp_path: Path, no_ray: None, arguments: tuple[str, ...], sentence: str
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("suite: {tasks: [Juggle], episodes: 2, horizon: 5}\n")
    known = {"CHECKPOINT": str(checkpoint), "SUITE": str(suite)}
    done = score(*(known.get(word, word) for word in arguments), "--storage", tmp_path / "runs")
    assert done.exit_code == 2
    assert sentence in done.stderr


# -- known outcomes are reused -------------------------------------------------------------------------------


def test_score_of_a_sweep_checkpoint_reuses_its_outcomes(tmp_path: Path, no_ray: None) -> None:
    """From the sweep's file and storage, without Ray; a shift that the sweep did not request has no
    outcomes.
    """
    sweep = make_sweep(tmp_path / "runs", make_episode_store(tmp_path / "store", 8), "", arms=2)
    file, place = tmp_path / "sweep.yaml", make_checkpoint(tmp_path / "checkpoint")
    file.write_text(sweep.to_yaml())
    state = SweepState.open(sweep)
    known = played(sweep.to_suite(), won=3)
    Ledger(state.storage, fingerprint(place), state.protocol).record(known)
    done = score(place, "--suite", file, "--storage", tmp_path / "runs", "--json")
    assert done.exit_code == 0, done.output
    assert "nothing to play" in done.stderr
    told = json.loads(done.stdout)
    assert told["episodes_played"] == 0
    assert [(one["of"], one["successes"], one["listed"], one["complete"]) for one in told["scores"]] == [
        ("Lift, nominal", 3, 4, True)
    ]
    assert told["protocols"] == {"nominal": state.protocol}
    arm_id, arm = next(iter(state.arms().items()))
    state.pin()
    assert (
        "has no checkpoint yet"
        in score(arm.name, "--sweep", sweep.name, "--storage", tmp_path / "runs").stderr
    )
    trained = make_checkpoint(tmp_path / "runs" / "arms" / arm_id / "step_000100")
    losses = {"loss": 0.5, "loss_video": 0.25, "loss_action": 0.25}
    write_record(state.storage, arm_id, 100, CheckpointRecord(fingerprint=fingerprint(trained), **losses))
    by_name = score(arm.name, "--sweep", sweep.name, "--storage", tmp_path / "runs", "--json")
    assert json.loads(by_name.stdout)["scores"] == told["scores"], "the sweep's own suite, without its file"
    assert (
        "is no arm of it; there are demos-1_ratio-0_seed-0, "
        in score("demos-3", "--sweep", sweep.name, "--storage", tmp_path / "runs").stderr
    )
    other = score(place, "--suite", file, "--storage", tmp_path / "runs", "--shift", "camera")
    assert isinstance(other.exception, AssertionError), "Ray is needed"


def test_score_of_an_installed_packages_policy_is_reused_for_equal_code_only(
    tmp_path: Path, no_ray: None
) -> None:
    sweep = make_sweep(tmp_path / "runs", make_episode_store(tmp_path / "store", 8), "", arms=2)
    file = tmp_path / "sweep.yaml"
    with on_path(tmp_path / "site") as site:
        install_linear(site)
        sweep = sweep.model_copy(update={"policy": PolicyChoice(lines=(Line(policy="linear"),))})
        file.write_text(sweep.to_yaml())
        place = make_checkpoint(tmp_path / "checkpoint", config=learner_config("tiny", "linear", {}))
        assert resolve_policy(str(place)).learner == "linear"
        state = SweepState.open(sweep)
        arm = next(iter(state.arms().values()))
        Ledger(state.storage, fingerprint(place), state.protocol_of("nominal", arm)).record(
            played(sweep.to_suite(), won=3)
        )
        asked = (place, "--suite", file, "--storage", tmp_path / "runs")
        done = score(*asked)
        assert done.exit_code == 0, done.output
        assert "nothing to play" in done.stdout
        install_linear(site, version="1.1")
        assert isinstance(score(*asked).exception, AssertionError), "Ray is needed"
        install_linear(site)
        assert "nothing to play" in score(*asked).stdout
        (site / "linear-policy.dist-info" / "entry_points.txt").unlink()
        forget()
        assert "no installed package offers a policy linear; installed are" in score(*asked).stderr


def test_score_options_override_the_suite_file(checkpoint: Path, tmp_path: Path, no_ray: None) -> None:
    """A file may hold a suite alone. An option with the default value counts too, if it is given."""
    file, storage = tmp_path / "suite.yaml", open_storage(str(tmp_path / "runs"))
    file.write_text("suite: {tasks: [Lift, Stack], episodes: 7, horizon: 90, settle: 3, rung: truncated}\n")
    suite = Suite(("Lift", "Stack"), 20, EpisodeRules(90, 3))
    protocol = protocol_key(suite, CONTRACT, TINY.ladder["truncated"], "egl").fingerprint
    Ledger(storage, fingerprint(checkpoint), protocol).record(played(suite, won=11))
    done = score(checkpoint, "--suite", file, "--episodes", "20", "--storage", storage.uri)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["Lift, nominal", "Stack, nominal"]
    assert sum(int(line.split(": ")[1].split("/")[0]) for line in lines) == 11


def test_baseline_sampler_is_that_of_the_preset_on_every_rung() -> None:
    for preset in ("tiny", "svd-256"):
        for rung in ("", "unguided"):
            assert _sampler(policy_config(preset, "diffusion_policy"), rung) == policy_config(
                preset
            ).sampler_on(rung)


def test_score_with_a_decided_rule_plays_nothing_more(checkpoint: Path, tmp_path: Path, no_ray: None) -> None:
    """Twenty failures decide that the rate is below 0.8: the other hundred and eighty are not played."""
    file, storage = tmp_path / "suite.yaml", open_storage(str(tmp_path / "runs"))
    file.write_text("suite: {tasks: [Lift], episodes: 200, horizon: 50, decide: {threshold: 0.8}}\n")
    from orchestrator.evaluation.sequential_rule import StoppingRule, Verdict

    suite, rule = Suite(("Lift",), 200, EpisodeRules(50)), StoppingRule(10, 0.95, 0.8)
    ledger = Ledger(
        storage, fingerprint(checkpoint), protocol_key(suite, CONTRACT, TINY.sampler, "egl").fingerprint
    )
    ledger.record(played(suite, won=0)[:20])
    ledger.keep_verdict(rule.key, Verdict("below 0.8", 20))
    done = score(checkpoint, "--suite", file, "--storage", storage.uri)
    assert done.exit_code == 0, done.output
    assert "below 0.8 after 20 of 200 listed" in done.stdout


def played(suite: Suite, won: int) -> list[Outcome]:
    return [
        Outcome(
            spec,
            "success" if number < won else "failure",
            9,
            1,
            0.1,
            0.1,
            9 if number < won else None,
            number < won,
        )
        for number, spec in enumerate(suite.episode_list())
    ]


def test_no_such_arm_names_the_closest_of_many_arms() -> None:
    arms = [Arm(demos, 1, seed) for demos in (5, 10, 20, 50) for seed in range(4)]
    assert no_such_arm("lift", "demos-9", arms[:2]).problems == [
        "demos-9 is no arm of it; there are demos-5_ratio-1_seed-0, demos-5_ratio-1_seed-1"
    ]
    (sentence,) = no_such_arm("lift", "demos-10_ratio-1_seed-9", arms).problems
    assert sentence.endswith("demos-10_ratio-1_seed-1 and 13 more (`demoscale status lift`)")
    assert "demos-50" not in sentence
