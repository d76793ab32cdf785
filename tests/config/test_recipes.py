"""Recipes of presets: what a sweep file without values trains with, and the paper's numbers in docs/paper.md."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHECKOUT

from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.provenance import TRAINING_PACKAGES, digest
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode
from orchestrator.training.loop import NOT_OF_THE_VIDEO
from policy.config import ColorJitter, PolicyConfig
from policy.latent_codec import VAE_SCALE
from policy.presets import PRESETS
from policy.video_unet import ADDED_TIME_IDS

SVD = PRESETS["svd-256"]
VERSIONS = dict.fromkeys(TRAINING_PACKAGES, "1")


def sweep(preset: str = "svd-256", train: Any = None, suite: Any = None, **policy: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "recipes",
            "data": {"episodes": "store", "demo_count": [2]},
            "policy": {"preset": preset, **policy},
            "train": {"steps": 10, "checkpoint_every": 5, **(train or {})},
            "suite": {"tasks": ["Lift"], "episodes": 1, "horizon": 9, **(suite or {})},
        }
    )


def job(name: str) -> SweepConfig:
    return SweepConfig.model_validate(yaml.safe_load((CHECKOUT / "jobs" / f"{name}.yaml").read_text()))


def numbers_here() -> dict[str, str]:
    """Return the column "here" of docs/paper.md from presets, recipes, constants and sweep files."""
    own, clip, video, diffusion = sweep(), SVD.clip, SVD.video, SVD.diffusion
    train, sampler, robocasa, libero = own.train, own.sampler, job("robocasa24"), job("libero10")
    assert video
    dropped, jitter = f"{100 * diffusion.condition_dropout:g} %", train.jitter
    assert jitter
    weights = train.loss_weights
    scale = 25 / weights.video
    none = {0.0: "none"}
    return {
        "frames per camera": f"{clip.frames_per_view}",
        "control steps between frames": f"{clip.frame_stride}",
        "frames before the views": f"{video.pad_frames}",
        "actions in a chunk": f"{clip.horizon}",
        "executed actions": f"{sampler.execute}",
        "past an episode's end": {"paper": "zero actions, still frames"}[clip.padding],
        "normalisation of actions": SVD.action_normalization,
        "demonstrations behind it": "the arm's own",
        "proprioception": {(): "none"}[own.suite.proprio or ()] if own.suite.proprio is not None else "all",
        "sentence": video.text,
        "micro-conditioning": ", ".join(f"{value:g}" for value in ADDED_TIME_IDS),
        "noise on the present pictures": f"{video.condition_noise:g}, a function of the picture",
        "scale of the latents": f"{VAE_SCALE}",
        "log noise level, mean and deviation": f"{diffusion.log_sigma_mean:g}, {diffusion.log_sigma_std:g}",
        "noise of video and actions": diffusion.sigmas,
        "action noises per video pass": f"{diffusion.action_draws}",
        "dropped sentence, pictures, both": f"{dropped}, {dropped}, {dropped} of clips",
        "denoising steps": f"{sampler.video_passes}" * (sampler.video_passes == sampler.action_steps),
        "guidance": f"{sampler.guidance:g}",
        "noise levels of sampling": "{:g} to {:g}, rho {:g}".format(*sampler.video_sigmas, sampler.rho)
        * (sampler.video_sigmas == sampler.action_sigmas),
        "training": train.mode,
        "optimiser": f"Adam{'W' * (train.weight_decay > 0)}, betas {train.betas[0]:g}, {train.betas[1]:g}",
        "learning rate, video model": f"{train.learning_rate:g}",
        "learning rate, action head": f"{train.head_learning_rate:g}",
        "schedule": train.schedule,
        "warm-up steps": f"{train.warmup_steps}",
        "gradient clipping": none[train.clip_norm],
        "running average": none[train.ema_decay],
        "loss weights, video to actions": f"{weights.video * scale:g} : {weights.action * scale:g}",
        "precision": train.precision,
        "gradient checkpointing": "yes" if train.gradient_checkpointing else "no",
        "colour jitter": ", ".join(f"{value:g}" for value in jitter.model_dump().values()),
        "clips per step": f"{train.batch_size}",
        "steps of each stage, RoboCasa-24": f"{robocasa.train.steps}"
        * (robocasa.train.steps == robocasa.train.video_steps),
        "steps between checkpoints": f"{robocasa.train.checkpoint_every}",
        "steps of the stages, LIBERO-10": f"{libero.train.video_steps}, {libero.train.steps}",
        "episodes per task, RoboCasa-24": f"{robocasa.suite.episodes}",
        "control steps of an episode, RoboCasa-24": f"{robocasa.suite.horizon}",
        "control steps of an episode, LIBERO-10": f"{libero.suite.horizon}",
    }


def paper_table() -> dict[str, list[str]]:
    """Return the cells of docs/paper.md by number: paper, its code, here, field, why."""
    lines = (CHECKOUT / "docs/paper.md").read_text().splitlines()
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    return {row[0]: row[1:] for row in rows if len(row) == 6 and row[0] not in ("number", "---")}


def test_paper_table_has_the_numbers_of_the_code_and_explains_differences() -> None:
    table = paper_table()
    assert {name: row[2] for name, row in table.items()} == numbers_here()
    for name, (paper, code, here, _, why) in table.items():
        stated = here in (code, paper) or (name == "training" and here.replace("_", " ")[:3] == code[:3])
        assert stated or why, f"{name}: {here} is neither the paper's nor the code's, and nothing says why"
    fields = {field.strip("` ") for row in table.values() for field in row[3].split(",") if field.strip()}
    resolved = sweep().model_dump()
    for field in fields:
        section, *parts = field.split(".")
        place = resolved[section]
        for part in parts:
            place = place[part]  # KeyError: the sweep file has no such field


EARLIER = {
    "quickstart": (
        "data.demo_count=[4,40]",
        "data.action_free_ratio=[0,1]",
        "train.videos=arm",
        "train.video_steps=300",
        "train.steps=1000",
        "train.checkpoint_every=500",
    )
}
"""Values of sweep files at the time of the keys."""


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("quickstart", ("2050226ef7ca4d0f", "9d9315db6100bdb5", "347f075df83c8c98")),
        ("lift_demo_efficiency", ("14e580a5c677d9ee", "9d9315db6100bdb5", "44eeeb2c34225074")),
    ],
)
def test_keys_of_tiny_sweeps_are_those_before_recipes(file: str, keys: tuple[str, ...]) -> None:
    own = SweepConfig.load(CHECKOUT / "jobs" / f"{file}.yaml", EARLIER.get(file, ()))
    parts = own.training_key("data", (), "w", VERSIONS, arm=own.grid()[0]).parts
    told = (
        {name: part for name, part in parts.items() if name != "code"},
        own.train.recorded(NOT_OF_THE_VIDEO),
        own.train.recorded({"match"}),
    )
    assert tuple(map(digest, told)) == keys
    assert digest(own.config_of(own.lines[0]).model_dump(mode="json")) == "0fc31f812ff70084"
    assert digest(own.sampler.model_dump(mode="json")) == "7afea23134120c7c"


def test_recipe_fills_what_a_file_leaves_out_and_round_trips() -> None:
    assert sweep("tiny").train.learning_rate == 1e-3
    own = sweep(train={"learning_rate": 3e-4, "betas": [0.9, 0.95], "loss_weights": {"action": 2}})
    assert (own.train.learning_rate, own.train.head_learning_rate) == (3e-4, 5e-5)
    assert (own.train.betas, own.train.loss_weights.video) == ((0.9, 0.95), 1)
    assert SweepConfig.model_validate(yaml.safe_load(own.to_yaml())) == own
    assert sweep(suite={"proprio": ["eef_pos"]}).suite.proprio == ("eef_pos",)
    assert sweep("tiny").suite.proprio is None


def test_stored_sweep_of_an_earlier_version_keeps_the_recipe_it_trained_with() -> None:
    stored = json.loads(json.dumps(sweep().model_dump(mode="json")))
    for name in ("betas", "loss_weights"):
        del stored["train"][name]
    del stored["suite"]["proprio"]
    stored["train"]["learning_rate"] = 1e-3
    again = SweepConfig.stored(stored, "here")
    assert (again.train.betas, again.train.learning_rate, again.suite.proprio) == ((0.9, 0.95), 1e-3, None)
    assert again.train.loss_weights.video == 1


def test_line_of_another_preset_has_its_recipe_unless_the_file_says_otherwise() -> None:
    lines = [
        {"name": "large", "policy": "video_action", "preset": "svd-256"},
        {"name": "own", "policy": "video_action", "preset": "svd-256", "train": {"learning_rate": 1e-4}},
        {"name": "dp", "policy": "diffusion_policy", "preset": "svd-256"},
        "video_action",
    ]
    mixed = sweep("tiny", {"ema_decay": 0.5}, lines=lines)
    large, own, dp, tiny = (mixed.line_train(line) for line in mixed.lines)
    assert (large.learning_rate, large.head_learning_rate, large.mode) == (1e-5, 5e-5, "two_stage")
    assert (own.learning_rate, own.precision) == (1e-4, "fp16")
    assert (dp.learning_rate, dp.schedule, dp.mode) == (1e-5, "constant", "joint")
    assert tiny == mixed.train
    assert {train.ema_decay for train in (large, own, dp)} == {0.5}, "the file's own value"
    back = sweep("svd-256", lines=[{"name": "small", "policy": "video_action", "preset": "tiny"}])
    assert back.line_train(back.lines[0]).model_dump(exclude={"steps", "checkpoint_every"}) == sweep(
        "tiny"
    ).train.model_dump(exclude={"steps", "checkpoint_every"})
    assert SweepConfig.model_validate(yaml.safe_load(mixed.to_yaml())) == mixed


def clip(config: PolicyConfig) -> tuple[int, int, int, str]:
    shape = config.clip
    return shape.frames_per_view, shape.frame_stride, shape.horizon, shape.padding


def test_settings_reach_configuration_sampler_and_keys_of_their_line_alone() -> None:
    lines = ["video_action", {"name": "short", "policy": "video_action", "settings": {"frames": 4}}]
    settings = {"stride": 2, "horizon": 8, "padding": "masked", "normalization": "quantile"}
    own = sweep(settings=settings, lines=lines, suite={"sampler": {"steps": 5, "guidance": 1}})
    whole, short = (own.config_of(line) for line in own.lines)
    assert (clip(whole), clip(short)) == ((8, 2, 8, "masked"), (4, 2, 8, "masked"))
    assert whole.action_normalization == "quantile"
    for line in own.lines:
        rung = own.sampler_of(line)
        assert rung
        assert (rung.video_passes, rung.action_steps, rung.guidance, rung.execute) == (5, 5, 1, 8)
    arms = own.grid()

    def parts(of: SweepConfig, number: int) -> Any:
        return of.training_key("data", (), "w", VERSIONS, arm=arms[number]).parts["policy"]

    assert parts(own, 0)["settings"]["horizon"] == 8
    assert {parts(own, number)["settings"].get("frames") for number in range(2)} == {None, 4}
    same = sweep(settings={"horizon": 32}, lines=["video_action"], suite={"sampler": {"execute": 8}})
    assert parts(same, next(n for n, arm in enumerate(arms) if arm.kind == "video_action")) == {
        "preset": "svd-256"
    }


def test_decoupled_noise_and_jitter_strengths_are_settings() -> None:
    own = sweep(
        train={"color_jitter": {"hue": 0.0}},
        settings={"noise": "decoupled", "features_at": "start", "video_log_sigma": [2.0, 1.0]},
    )
    diffusion = own.config_of(own.lines[0]).diffusion
    assert (diffusion.sigmas, diffusion.video_log_sigma_mean, diffusion.log_sigma_std) == (
        "decoupled",
        2,
        1.6,
    )
    assert own.train.jitter == ColorJitter(hue=0.0)
    assert sweep(train={"color_jitter": {}}).train.color_jitter is True, "the same key as true"
    assert sweep("tiny").train.jitter is None


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"suite": {"sampler": {"execute": 33}}},
            "suite.sampler.execute: 33 actions, and a chunk of video_ac",
        ),
        (
            {"suite": {"sampler": {"steps": 3, "action_steps": 4}}},
            "suite.sampler: steps is the number of both",
        ),
        ({"policy": {"settings": {"features_at": "start"}}}, "policy.settings: features_at start reads the"),
        (
            {"policy": {"settings": {"frame": 3}}},
            "policy.settings.frame: unknown field; did you mean frames?",
        ),
        ({"train": {"betas": [0.9, 1]}}, "train.betas.1: input should be less than 1, not 1"),
        (
            {"train": {"color_jitter": {"hue": 2}}},
            "train.color_jitter.hue: input should be less than or equal",
        ),
        ({"train": {"color_jitter": "much"}}, "train.color_jitter: write true or false"),
    ],
)
def test_wrong_settings_name_field_and_fix(tmp_path: Path, sections: dict[str, Any], told: str) -> None:
    raw = json.loads(json.dumps(sweep().model_dump(mode="json", exclude_unset=True)))
    for section, fields in sections.items():
        raw[section] |= fields
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(SweepError) as caught:
        SweepConfig.load(tmp_path / "sweep.yaml")
    assert any(problem.startswith(told) for problem in caught.value.problems), caught.value.problems


def test_video_test_is_one_per_clip_and_none_without_future_frames(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    commit(storage, CONTRACT, [put_episode(storage, make_episode(seed, 40), 20.0) for seed in range(4)])
    lines = ["video_action", {"name": "present", "policy": "video_action", "settings": {"frames": 1}}]
    raw = sweep("tiny", lines=lines).model_dump(mode="json")
    raw |= {"storage": f"{tmp_path}/runs", "data": {"episodes": storage.uri, "demo_count": [1]}}
    raw["suite"]["video_clips"] = 2
    state = SweepState.open(SweepConfig.model_validate(raw))
    whole, present = (state.video_test(line) for line in state.sweep.lines)
    assert whole is not None
    assert present is None
