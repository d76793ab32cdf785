"""The sections of a sweep file, field by field. `orchestrator/config/sweep_config.py` puts them together."""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from orchestrator.data.merged_store import StorePart
from policy.config import Objective, Recipe, SamplerSettings
from policy.interface import CameraPose, Contract
from sim_workers.demos.recorder import refusal as refusal_of_expert
from sim_workers.envs.embodiment import (
    CONTROLLERS,
    DEFAULT_ROBOT,
    ROBOTS,
    Embodiment,
    EmbodimentError,
    embodiment_of,
    proprio_columns,
)
from sim_workers.envs.libero import INIT_STATES as FIXED_SCENES
from sim_workers.envs.libero import LIBERO
from sim_workers.envs.registry import (
    PluginError,
    environment_of,
    horizon_of,
    is_task,
    task_names,
)
from sim_workers.rollout.suite import SELECT_BLOCK, EpisodeRules, Reset, Suite


def _known_task(task: str) -> str:
    if not is_task(task):
        close = difflib.get_close_matches(task, task_names(), 1)
        raise ValueError(
            f"unknown task {task}; "
            + (f"did you mean {close[0]}?" if close else "sim_workers/README.md lists them")
        )
    return task


def _share_or_number(held_out: float) -> float:
    if held_out >= 1 and held_out != int(held_out):
        raise ValueError(
            f"{held_out:g} is neither a share below 1 nor a whole number of episodes; write 0.2 for a fifth"
            " of each task's episodes, or 10 for ten of them"
        )
    return held_out


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; raise ValueError if one appears twice."""
    if len(set(values)) < len(values):
        raise ValueError("each value may appear once")
    return values


def without(stated: Mapping[str, Any], **absent: Any) -> dict[str, Any]:
    """Return a serialised section without the fields that have the value given for them, as if they were not
    written: keys and files of sweeps from before these fields lack them.
    """
    return {name: value for name, value in stated.items() if name not in absent or value != absent[name]}


class Section(BaseModel):
    """Choices only; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )


class Range(Section):
    """Any value between two."""

    low: NonNegativeFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low must be below high")
        return self


class Demos(Range):
    """Any demo count between two."""

    low: PositiveInt
    high: PositiveInt


_LIST, _RANGE = Tag("list"), Tag("range")
_either = Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "list")


class StoreEntry(Section):
    """Part of an episode store: its filters, its weight, and its views."""

    store: str
    """Episode store: a folder or an s3:// URI."""
    tasks: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    """Keep only the episodes of these tasks; empty: all."""
    source: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    """Keep only the episodes whose source (`demoscale data ls`) contains one of these texts; empty: all."""
    success: bool | None = None
    """Keep only the episodes that achieved their task (true), or those that did not (false); empty: both, and
    those of which it is not known."""
    quality: str = ""
    """File with one episode id per line, to keep only those; or with what `demoscale data check --json`
    prints, to leave out the episodes with findings. It is read by the sweep's first run, or by a plan before.
    """
    weight: PositiveFloat | None = None
    """Share of clips that come from this store, relative to the weights of the others, among demos and among
    action-free episodes alike; it holds in every batch, up to a clip. Empty: by the number of frames. Either
    all parts have one, or none."""
    action_free_only: bool = False
    """Use only the pictures. Such a store may have other cameras, picture sizes and robots than the demos."""
    cameras: dict[str, str | tuple[str, ...]] = {}
    """With `action_free_only`: which of this store's cameras shows which of the demos', {front: agentview} or
    {front: [agentview, wrist]}; each of the demos' once. Pictures are scaled to theirs. Empty: the names are
    equal.
    """
    name: str = ""
    """With `action_free_only`: kind of these videos, such as `other_robot`. Only lines with `data: {videos:
    other_robot}` learn from them; several parts may be of one kind. Empty: every line may learn from them.
    """

    def part(self) -> StorePart:
        """Return the part of the store."""
        return StorePart(
            store=self.store,
            tasks=self.tasks,
            source=self.source,
            success=self.success,
            quality=self.quality,
            weight=self.weight,
            action_free_only=self.action_free_only,
            cameras=tuple(
                (theirs, (ours,) if isinstance(ours, str) else ours) for theirs, ours in self.cameras.items()
            ),
            video_kind=self.name,
        )

    @model_validator(mode="after")
    def _named_for_its_videos(self) -> "StoreEntry":
        if self.name and not self.action_free_only:
            raise ValueError(
                f"name: {self.name} names a kind of videos; write action_free_only: true, or leave name out"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty `name`: a resumed sweep compares its parts with those that it stored."""
        return without(serialize(self), name="")


class Data(Section):
    """Which episodes, and how many of them an arm gets."""

    episodes: Annotated[
        Annotated[str, Tag("one")] | Annotated[tuple[StoreEntry, ...], Field(min_length=1), Tag("several")],
        Discriminator(lambda value: "one" if isinstance(value, str) else "several"),
    ]
    """Episode store: a folder or an s3:// URI, written by `demoscale collect` or `demoscale import`. Or a
    list of parts of stores, {store: data/lift, tasks: [Lift], success: true}, each with the fields below.
    """
    demo_count: Annotated[
        Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(distinct), _LIST]
        | Annotated[Demos, _RANGE],
        _either,
    ]
    """Episodes with actions per task; a smaller count is always contained in a larger one. A list, or for
    Optuna also {low: 10, high: 200}.
    """
    action_free_ratio: Annotated[
        Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1), AfterValidator(distinct), _LIST]
        | Annotated[Range, _RANGE],
        _either,
    ] = (0.0,)
    """Action-free episodes per demo. Clips of both are drawn in the same proportion, in every batch. A list,
    or for Optuna also {low: 0, high: 3}.
    """
    labelled_tasks: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    """Tasks that are demonstrated; empty: all. Every other task in the store has videos without actions only.
    A line of `policy.lines` may take the first ones of the list (`data: {labelled: 6}`).
    """
    unlabelled_videos: NonNegativeInt | None = None
    """Videos of every task that is not labelled; a smaller number is always contained in a larger one. Empty:
    `demo_count` of them; 0: none. A line of `policy.lines` may have another number.
    """
    on_corrupt: Literal["stop", "quarantine"] = "stop"
    """A damaged episode: `stop` names it and ends; `quarantine` reads all that the sweep needs beforehand,
    sets damaged ones aside, and the next in order take their places, so no demo count changes."""
    decode: Literal["trainer", "cluster"] = "trainer"
    """Where video is decoded: `trainer`: in the training process; `cluster`: in a Ray Data actor per training
    worker, on any node with a free CPU, for trainers on GPUs with few cores. Batches and weights are the
    same.
    """

    @property
    def stores(self) -> tuple[str, ...]:
        """URIs of the stores."""
        return (
            (self.episodes,)
            if isinstance(self.episodes, str)
            else tuple(entry.store for entry in self.episodes)
        )

    @property
    def video_kinds(self) -> tuple[str, ...]:
        """Names of the parts of stores, without repeats."""
        if isinstance(self.episodes, str):
            return ()
        return tuple(dict.fromkeys(entry.name for entry in self.episodes if entry.name))

    @property
    def weighted(self) -> bool:
        """Whether the parts of stores have weights."""
        return not isinstance(self.episodes, str) and any(entry.weight is not None for entry in self.episodes)

    @property
    def most_demos(self) -> int:
        """Largest demo count of any arm."""
        return self.demo_count.high if isinstance(self.demo_count, Range) else max(self.demo_count)

    @property
    def highest_ratio(self) -> float:
        """Largest action-free ratio of any arm."""
        return (
            self.action_free_ratio.high
            if isinstance(self.action_free_ratio, Range)
            else max(self.action_free_ratio)
        )


ALL, LAST, BEST = "all", "last", "best"
"""Values of `train.keep` besides `every n`."""


def known_keep(keep: str) -> str:
    """Return a value of `train.keep`. Raises ValueError for any other."""
    if keep not in (ALL, LAST, BEST) and not re.fullmatch(r"every [1-9]\d{0,5}", keep):
        raise ValueError(f"{keep!r} is unknown; write all, last, best or every n, such as every 5")
    return keep


class Train(Recipe):
    """How one arm is trained; `match` says what arms have in common. Without a value, a field of the recipe
    is that of the preset (`policy.presets.RECIPES`).
    """

    match: Literal["steps", "epochs", "gpu_seconds"] = "steps"
    """What arms have in common. `steps`: optimiser steps. `epochs`: passes over their demos: `steps`,
    `checkpoint_every` and, for stage 1 of an arm of its own, `video_steps` are those of the largest demo
    count, an arm with fewer demos gets as many fewer. `gpu_seconds`: time of training, `seconds`, in place of
    `steps`.
    """
    seconds: PositiveInt | None = None
    """With `match: gpu_seconds`: seconds of training that every arm gets, those of all its GPUs added up;
    without GPUs, those of its training processes. Waits for data count; loading, saving, scoring do not.
    """
    steps: PositiveInt = Field(default=None, validate_default=True)
    """Optimiser steps. Must be there unless `match` is `gpu_seconds`."""
    video_steps: PositiveInt | None = None
    """Optimiser steps of stage 1 where `mode` is `two_stage`; empty: as many as `steps`."""
    videos: Literal["arm", "sweep"] = "arm"
    """What stage 1 learns from: `arm`: the arm's own demos and action-free episodes; `sweep`: those of all
    arms of its seed, so that they share one stage 1, and the demo count says for how many of the videos
    actions are known; lines with `action_free: false` share one that has seen demos alone. Stage 1 is trained
    once for all arms it is the same for.
    """
    batch_size: PositiveInt = 32
    """Clips per optimiser step, over all workers; a multiple of their number."""
    workers: PositiveInt = 1
    """Training processes; one GPU each where there are GPUs."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints, or seconds with `match: gpu_seconds`; every checkpoint is scored, the last
    step always is one."""
    keep: Annotated[str, AfterValidator(known_keep)] = ALL
    """Which checkpoints of an arm stay once they are scored: `all`, `last`, `best` (by its score, and the
    last) or `every n` (every n-th, and the last). Scores stay, and so do checkpoints that a resumed run or a
    model registered in MLflow needs. Changes no arm.
    """

    @field_validator("seconds")
    @classmethod
    def _with_its_match(cls, seconds: int | None, info: ValidationInfo) -> int | None:
        if seconds is not None and info.data.get("match", "gpu_seconds") != "gpu_seconds":
            raise ValueError("a budget of time is that of match: gpu_seconds; write that, or leave it out")
        return seconds

    @field_validator("steps", mode="wrap")
    @classmethod
    def _ends(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> int:
        """Require the field; with `gpu_seconds` refuse it, require `seconds` and keep 0."""
        if info.data.get("match") == "gpu_seconds" and "seconds" in info.data:
            if info.data["seconds"] is None:
                raise ValueError("match: gpu_seconds needs a budget of time; write seconds: 600")
            if value:
                raise ValueError(
                    "match: gpu_seconds ends training by time; leave steps out, or write match: steps"
                )
            return 0
        if value is None:
            raise PydanticKnownError("missing")
        steps: int = validate(value)
        return steps

    @field_validator("match")
    @classmethod
    def _one_budget(cls, match: str, info: ValidationInfo) -> str:
        if match == "gpu_seconds" and info.data.get("mode") == "two_stage":
            raise ValueError(
                "gpu_seconds gives every arm one budget, and train.mode two_stage trains a video model before"
                " it; write joint, joint_detached or action_only, or match steps"
            )
        return match

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty `seconds` and `keep: all`, so that keys and files of sweeps without them stay as
        they were.
        """
        return without(serialize(self), keep=ALL, seconds=None)

    @field_validator("workers")
    @classmethod
    def _share_equally(cls, workers: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size", workers)
        if batch_size % workers:
            raise ValueError(f"{workers} workers cannot share batch_size {batch_size} equally")
        return workers

    @property
    def shards(self) -> bool:
        """Whether several workers hold a part of the model each."""
        return self.sharding == "fsdp" and self.workers > 1

    def recorded(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Return the fields for keys and cards as `Recipe.recorded` does, without `keep`, which shapes no
        checkpoint; one worker has nothing to share, whatever `sharding` says.
        """
        stated = super().recorded({*exclude, "keep"})
        if "sharding" in stated and not self.shards:
            stated["sharding"] = "ddp"
        return stated

    @property
    def timed(self) -> bool:
        """Whether training ends at a time (`match: gpu_seconds`)."""
        return self.seconds is not None

    @property
    def end(self) -> int:
        """Where training ends, in the unit in which checkpoints are counted: optimiser steps, or seconds of a
        budget.
        """
        return self.steps if self.seconds is None else self.seconds

    @property
    def unit(self) -> str:
        """Name of that unit: `steps`, or `seconds`."""
        return "seconds" if self.timed else "steps"

    @property
    def objective(self) -> Objective:
        """Of the run whose checkpoints are scored."""
        return self.mode if self.mode in ("joint", "joint_detached") else "action"

    def kept_of(self, checkpoints: int, video_model: bool = False) -> int:
        """Return how many of a finished run's checkpoints stay; of a video model the last one does, unless
        all do.
        """
        if self.keep == ALL:
            return checkpoints
        if self.keep == LAST or video_model:
            return min(1, checkpoints)
        if self.keep == BEST:
            return min(2, checkpoints)
        every = int(self.keep.removeprefix("every "))
        return checkpoints // every + (checkpoints % every > 0)

    def shaping(self) -> dict[str, Any]:
        """Return the fields that shape a policy's weights after a given step.

        `checkpoint_every`, `feature_cache_mb` and `match` are left out. `steps` is left out if the learning
        rate is constant: training to more steps then passes through the same weights. `video_steps`, by
        default `steps`, counts in mode `two_stage`. With a budget of time everything counts that changes how
        far it goes.
        """
        if self.timed:
            shaping = self.recorded({"checkpoint_every", "steps"})
            if self.schedule == "constant":
                del shaping["seconds"]
            return shaping
        shaping = self.recorded({"checkpoint_every", "feature_cache_mb", "match"})
        shaping["video_steps"] = (self.video_steps or self.steps) if self.mode == "two_stage" else None
        if self.schedule == "constant":
            del shaping["steps"]
        return shaping

    def scaled(self, part: float) -> "Train":
        """Return the recipe with this part of the steps; a stage 1 that arms share keeps its own."""
        shorter = {name: max(1, round(getattr(self, name) * part)) for name in ("steps", "checkpoint_every")}
        if self.mode == "two_stage":
            video_steps = self.video_steps or self.steps
            shorter["video_steps"] = (
                video_steps if self.videos == "sweep" else max(1, round(video_steps * part))
            )
        return self.model_copy(update=shorter)


class Decide(Section):
    """Looks at a score while it comes, and ends it when enough is known; only one of `threshold` and
    `against`.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Until the success rate is clearly above or below it."""
    against: str = ""
    """Until it is clear whether the checkpoint is better than that of another arm after the same step,
    episode by episode. An arm's name, whose end may be left out: `demos-50` is the arm of 50 demos with the
    same ratio and seed. That arm is scored whole; without its outcomes nothing is decided."""
    look_every: PositiveInt = 10
    """Episodes per task between looks."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Confidence of one checkpoint's verdict, over all its looks together."""

    @model_validator(mode="after")
    def _one_question(self) -> "Decide":
        if (self.threshold is None) == (not self.against):
            raise ValueError("write {threshold: 0.8} or {against: demos-50}, and only one of them")
        return self


NOTHING_IS_PLAYED = "held-out episodes are recordings, of which no simulator plays any; leave out"


class Camera(Section):
    """A camera with a pose of its own, in place of the scene's camera of that name if there is one."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    """Its name in the store and in `demoscale collect --cameras`."""
    position: tuple[float, float, float]
    """x, y, z in metres, in the world or in the frame of the mount."""
    lookat: tuple[float, float, float] | None = None
    """Point in the middle of the picture, in the same frame, the picture's top towards +z."""
    orientation: tuple[float, float, float, float] | None = None
    """In place of `lookat`: quaternion w, x, y, z; the camera looks along its own -z with +y up."""
    fov: Annotated[float, Field(gt=0, lt=180)] = 45.0
    """Vertical field of view, in degrees."""
    mount: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$")] = ""
    """Empty: it stands in the world; `robot0_hand`: it moves with the robot's hand."""
    depth: bool = False
    """Refused: policies get pictures in colour only."""

    @model_validator(mode="after")
    def _one_direction(self) -> "Camera":
        if self.depth:
            raise ValueError(
                f"{self.name}: depth is not supported; pictures are RGB, 8 bits per channel; leave depth out"
            )
        if (self.lookat is None) == (self.orientation is None):
            raise ValueError(f"{self.name}: write either lookat or orientation, and only one of them")
        self.pose()
        return self

    def pose(self) -> CameraPose:
        """Return the pose as in a contract. Raises ValueError if it has no direction."""
        if self.orientation is not None:
            norm = math.hypot(*self.orientation)
            if norm < 1e-6:
                raise ValueError(f"{self.name}: orientation is no rotation: all its numbers are 0")
            w, x, y, z = (number / norm for number in self.orientation)
        else:
            assert self.lookat
            w, x, y, z = self._towards(self.lookat)
        return CameraPose(self.name, self.position, (w, x, y, z), self.fov, self.mount)

    def _towards(self, point: tuple[float, float, float]) -> list[float]:
        """Return the quaternion w, x, y, z of a camera that looks at the point, +z up in its picture."""
        x, y, z = (there - here for here, there in zip(self.position, point, strict=True))
        flat, far = math.hypot(x, y), math.hypot(x, y, z)
        if far < 1e-6:
            raise ValueError(f"{self.name}: lookat is the camera's own position; choose another point")
        # From looking straight down with +y up in the picture: first tilt about x, then turn about z.
        tilt = math.acos(max(-1.0, min(1.0, -z / far))) / 2
        turn = math.atan2(-x, y) / 2 if flat > 1e-9 else 0.0
        return [
            math.cos(turn) * math.cos(tilt),
            math.cos(turn) * math.sin(tilt),
            math.sin(turn) * math.sin(tilt),
            math.sin(turn) * math.cos(tilt),
        ]


Horizon = PositiveInt | Literal["auto"] | dict[str, PositiveInt]


class SuiteConfig(Section):
    """The evaluation episodes: the same initial states for every checkpoint of every arm."""

    held_out: Annotated[PositiveFloat, AfterValidator(_share_or_number)] | None = None
    """Instead of `tasks`, `episodes` and `horizon`, for data without a simulator: every checkpoint's action
    error is measured on recorded episodes that no arm trains on, the same for all. Below 1 the share of each
    task's episodes with actions, from 1 on their number per task. Lower is better, and no success rate is
    known.
    """
    tasks: Annotated[
        tuple[Annotated[str, AfterValidator(_known_task)], ...], Field(min_length=1), AfterValidator(distinct)
    ] = Field(default=None, validate_default=True)
    """Tasks of robosuite, LIBERO, RoboCasa and installed plug-ins (`demoscale task list`); each must be
    demonstrated in the episode store. Must be there unless `held_out` is.
    """
    episodes: PositiveInt = Field(default=None, validate_default=True)
    """Episodes per task. Must be there unless `held_out` is."""
    horizon: Horizon = Field(default=None, validate_default=True)
    """Control steps until an episode counts as failed (20 steps are one second by default): one number, one
    per task as {Lift: 100, Door: 300}, or `auto`, each task's own. Must be there unless `held_out` is.
    """
    robot: str | None = None
    """Robot of robosuite's tasks: Panda, Sawyer, IIWA, UR5e, Jaco, Kinova3 or XArm7. This and the next four
    say what `demoscale collect --suite FILE` records; a sweep refuses a store that was recorded otherwise.
    Empty: the store's; `collect`: Panda.
    """
    controller: str | None = None
    """What actions are: `delta_pose` (displacement of the hand), `pose` (of the hand, absolute),
    `joint_position`, `joint_velocity`. Empty: the store's; `collect`: `delta_pose`.
    """
    control_hz: PositiveFloat | None = None
    """Control steps per second, a divisor of 500. Empty: the store's; `collect`: 20."""
    cameras: tuple[Camera, ...] | None = None
    """Cameras with poses of their own; the size is `demoscale collect --image-size`. Empty: the store's."""
    proprio: Annotated[tuple[str, ...], AfterValidator(distinct)] | None = None
    """Proprioception that policies get: keys `eef_pos`, `eef_quat`, `gripper_qpos`, `gripper_qvel`,
    `joint_pos`, `joint_vel`, or names of values in the store; [] for none, the paper's setting. A store may
    hold more. Empty: all of the store's; `collect`: pose of hand and fingers.
    """
    settle: NonNegativeInt = 10
    """Control steps played after the first success, to see whether it lasts."""
    success: Literal["once", "at_end"] = "once"
    """What counts: the task done at any step, or in the last step played. Both are recorded, and the first
    step it was done at.
    """
    shifts: Annotated[
        tuple[Literal["lighting", "texture", "camera", "object", "placement", "distractors"], ...],
        AfterValidator(distinct),
    ] = ()
    """Shifted worlds that every arm's last checkpoint is scored in as well, as many episodes each: a number
    of its own per shift.
    """
    gl: Literal["egl", "osmesa", "mixed"] = "egl"
    """What renders the pictures: EGL on a GPU or, through Mesa, on a CPU; OSMesa where there is no EGL.
    Workers whose driver draws otherwise than the first one did refuse. mixed: they play too, each with its
    own EGL; `experiments/drivers.py` measures how much pictures then differ.
    """
    processors: Literal["one", "mixed"] = "one"
    """Processors of the simulators. one: a worker whose physics or pictures differ from the first one's in a
    single bit refuses. mixed: workers on another kind of processor play too if its self-test differs in
    rounding alone; `experiments/processors.py` measures how many episodes then end otherwise.
    """
    libero_reset: Reset = "settled"
    """How episodes of LIBERO's tasks begin. settled: the arm rests in the fixed state. libero: LIBERO's own
    `reset(); set_init_state()` and five idle steps, to the same state; the arm drifts by millimetres.
    openvla: the same with OpenVLA's ten idle steps with an open gripper, which most published scores of
    vision-language-action models use. Scores of different values are not compared.
    """
    rung: Literal["", "faithful", "unguided", "truncated", "one_pass"] = ""
    """How an observation becomes actions, from 30 joint denoising steps with guidance down to one video pass;
    empty: the preset's own.
    """
    sampler: SamplerSettings = SamplerSettings()
    """Values in place of the rung's, such as {steps: 10, guidance: 1, execute: 8}. They change scores and no
    training: sweeps that differ in them alone share their arms in one `storage`.
    """
    every: PositiveInt = 1
    """Which checkpoints of an arm are scored: 1 for every one, 2 for every second one; the last one always.
    """
    references: Annotated[tuple[Literal["random", "expert", "replay"], ...], AfterValidator(distinct)] = ()
    """Policies that anchor the scale, each scored once on the same episodes and drawn as a horizontal line
    that no comparison counts. random: actions within the range of the demonstrated ones; expert: the
    scripted expert, which observes the true state; replay: each scene gets the actions of one of 20
    demonstrations of other scenes.
    """
    decide: Decide | None = None
    """Play no more of the episodes than it takes to decide something; empty: all of them. Shifted worlds are
    always played whole. A rate that ends early is biased away from its threshold or reference by one to four
    points; its interval accounts for that. Changing the rule loses nothing: what was played is kept, and the
    rest is played when it is asked for.
    """
    select: PositiveInt | None = None
    """Episodes per task, in scenes of their own, on which every checkpoint is scored for decisions: searches,
    `decide` and the generated video see only these. The arms' last checkpoints alone are then scored on
    `episodes`, which the curve shows, so no reported rate has been chosen for being high. LIBERO's 50 scenes
    are divided between the two. Empty: one list serves both.
    """
    report: Literal["last", "best"] = "last"
    """With `select`: which checkpoints of an arm are scored on `episodes`. last: the last one; best: also the
    one that is best on the scenes of `select`, for `demoscale curve --checkpoint best`.
    """

    @field_validator("horizon", mode="before")
    @classmethod
    def _one_or_per_task(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict):
            tasks = info.data.get("tasks", tuple(value))
            if missing := [task for task in tasks if task not in value]:
                raise ValueError(f"no horizon for {', '.join(missing)}; name every task of suite.tasks")
            if others := [str(task) for task in value if task not in tasks]:
                raise ValueError(f"{', '.join(others)}: not among suite.tasks")
        numbers = value.values() if isinstance(value, dict) else () if value == "auto" else (value,)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(
                    "write a whole number of control steps of at least 1, one per task, or auto; not"
                    f" {number!r}"
                )
        return value

    @field_validator("robot", "controller")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = ROBOTS if info.field_name == "robot" else CONTROLLERS
        if value is not None and value not in known:
            raise ValueError(f"unknown {info.field_name} {value}; there are {', '.join(known)}")
        return value

    @field_validator("cameras")
    @classmethod
    def _distinct_cameras(cls, value: tuple[Camera, ...] | None) -> tuple[Camera, ...] | None:
        names = [camera.name for camera in value or ()]
        if len(set(names)) < len(names):
            raise ValueError("each camera may appear once")
        return value

    @property
    def embodiment(self) -> Embodiment:
        """Embodiment with which `demoscale collect` records; defaults where the suite says nothing."""
        chosen: dict[str, Any] = {
            "robot": self.robot,
            "controller": self.controller,
            "control_hz": self.control_hz,
            "proprio": self.proprio,
            "poses": self.cameras and tuple(camera.pose() for camera in self.cameras),
        }
        return Embodiment(**{name: value for name, value in chosen.items() if value is not None})

    def select_problems(self) -> list[str]:
        """Return why the scenes of `select` cannot be kept apart from those of `episodes`, as sentences."""
        fixed = [task for task in self.tasks or () if task in LIBERO]
        if not self.select or not fixed or self.episodes + self.select <= FIXED_SCENES:
            return []
        return [
            f"select: {fixed[0]} has {FIXED_SCENES} scenes; {self.episodes} episodes and {self.select} to"
            " select would share some; lower one of them"
        ]

    def task_problems(self) -> list[str]:
        """Return one sentence per field of the embodiment that a task cannot have, which names the field."""
        fields = [
            name
            for name in ("robot", "controller", "control_hz", "cameras")
            if getattr(self, name) is not None
        ]
        found = list[str]()
        for task in self.tasks if fields else ():
            try:
                name = environment_of(task)
            except PluginError as error:
                found.append(f"tasks: {error}")
                continue
            if name:
                found += replace(self.embodiment, proprio=None).problems(name)
            else:
                found.append(f"{fields[0]}: {task} has its own; it can be chosen for robosuite's tasks only")
        return list(dict.fromkeys(found))

    def store_problems(self, store: Contract) -> list[str]:
        """Return one sentence per field in which the store was recorded otherwise than the suite says."""
        found = list[str]()
        stated = {
            "robot": (self.robot, store.robot or DEFAULT_ROBOT),
            "control_hz": (self.control_hz, store.control_hz),
        }
        if self.controller and self.tasks:
            try:
                stated["controller"] = self.controller, embodiment_of(store, self.tasks[0]).controller
            except EmbodimentError as error:
                found.append(f"suite.controller: {self.controller}, but of the store's actions {error}")
        if lacking := [camera.name for camera in self.cameras or () if camera.name not in store.cameras]:
            found.append(
                f"suite.cameras: the store has no pictures of {', '.join(lacking)}; it has"
                f" {', '.join(store.cameras)}; record it with `demoscale collect --suite`, or leave the"
                " camera out"
            )
        elif self.cameras is not None:
            mine = tuple(camera.pose() for camera in self.cameras if camera.name in store.cameras)
            if set(mine) != set(store.poses):
                found.append(
                    "suite.cameras: the store's pictures were taken from other poses; record it with"
                    " `demoscale collect --suite`, or leave the field out"
                )
        found += [
            f"suite.{name}: {mine}, but the store was recorded with {theirs}; record another store, or leave"
            " the field out"
            for name, (mine, theirs) in stated.items()
            if mine is not None and mine != theirs
        ]
        if "expert" in self.references:
            found += [f"suite.references: expert: {why}" for why in self._without_expert(store)]
        try:
            self.proprio_of(store)
        except EmbodimentError as error:
            found.append(f"suite.{error}")
        return found

    def _without_expert(self, store: Contract) -> list[str]:
        """Return why tasks have no scripted expert for the store's robot and controller."""
        found = list[str]()
        for task in self.tasks:
            try:
                found.append(refusal_of_expert(task, embodiment_of(store, environment_of(task) or task)))
            except (EmbodimentError, PluginError) as error:
                found.append(f"{task}: {error}")
        return list(dict.fromkeys(filter(None, found)))

    def proprio_of(self, store: Contract) -> tuple[int, ...] | None:
        """Return the indices of the store's proprioceptive values that policies get; None: all. Raises
        EmbodimentError if the store lacks one.
        """
        return None if self.proprio is None else tuple(proprio_columns(store.proprio, self.proprio))

    def contract_of(self, store: Contract) -> Contract:
        """Return the conventions of policies that learn from the store: its own, with the chosen
        proprioception. Raises EmbodimentError if the store lacks a value.
        """
        columns = self.proprio_of(store)
        if columns is None:
            return store
        return replace(store, proprio=tuple(store.proprio[column] for column in columns))

    def to_suite(self, tasks: tuple[str, ...], block: int = 0, shift: str = "nominal") -> Suite:
        """Return the list of episodes of some tasks. Raises PluginError for a broken plug-in whose horizon is
        `auto`.
        """
        suite = suite_of(tasks, self.episodes, self.horizon, self.settle, self.success, block, shift)
        return replace(suite, processors=self.processors, reset=self.libero_reset)

    def to_select_suite(self) -> Suite:
        """Return the list of episodes of `select`, whose scenes are not among those of `episodes`."""
        assert self.select
        # for LIBERO, whose scenes are 50 in a cycle: the last ones
        offset = -self.select % FIXED_SCENES
        return replace(self.to_suite(self.tasks, SELECT_BLOCK), episodes=self.select, offset=offset)

    @property
    def against(self) -> str:
        """Name of the arms that others' scores are compared with; empty if there are none."""
        return self.decide.against if self.decide else ""

    @property
    def fewest(self) -> int:
        """Episodes that a score is made of at least."""
        most = self.select or self.episodes
        return min(most, self.decide.look_every if self.decide else most) * len(self.tasks)

    @field_validator("tasks", "episodes", "horizon", mode="wrap")
    @classmethod
    def _played(
        cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> tuple[str, ...] | int:
        """Require the fields of a simulation; with `held_out` refuse them, and keep () and 0."""
        recorded = info.data.get("held_out", True) is not None  # also if `held_out` is wrong
        if recorded and not value:
            return () if info.field_name == "tasks" else 0
        if recorded and "held_out" in info.data:
            raise ValueError(f"{NOTHING_IS_PLAYED} {info.field_name} or suite.held_out")
        if value is None:
            raise PydanticKnownError("missing")
        validated: tuple[str, ...] | int = validate(value)
        return validated

    @field_validator(
        "settle",
        "success",
        "shifts",
        "gl",
        "processors",
        "libero_reset",
        "references",
        "decide",
        "select",
        "report",
    )
    @classmethod
    def _simulated(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse with `held_out` what is about simulations."""
        default = cls.model_fields[str(info.field_name)].default
        if info.data.get("held_out") is not None and value != default:
            raise ValueError(f"{NOTHING_IS_PLAYED} {info.field_name} or suite.held_out")
        return value

    @field_validator("report")
    @classmethod
    def _with_select(cls, value: str, info: ValidationInfo) -> str:
        if value == "best" and info.data.get("held_out") is None and not info.data.get("select", True):
            raise ValueError(
                "best takes scenes that choose the checkpoint and are not reported; set suite.select, such as"
                " 20, or leave out suite.report"
            )
        return value

    video_clips: NonNegativeInt = 8
    """Held-out clips per task on which every checkpoint's generated video is compared with what happened, as
    MLflow metrics; they are cut from episodes that no arm trains on. 0: none. No score depends on it."""

    @field_validator("libero_reset")
    @classmethod
    def _of_libero(cls, value: Reset, info: ValidationInfo) -> Reset:
        others = [task for task in info.data.get("tasks") or () if task not in LIBERO]
        if value != "settled" and others:
            raise ValueError(
                f"{value} is a reset of LIBERO's tasks; {', '.join(others)} has none; leave it out"
            )
        return value

    @property
    def listed(self) -> int:
        """Episodes that a score is made of."""
        return self.episodes * len(self.tasks)

    @property
    def reports(self) -> int:
        """Lists of `episodes` that an arm's checkpoints are scored on, at most, besides those that decide."""
        of_select = (2 if self.report == "best" else 1) if self.select else 0
        return len(self.shifts) + of_select

    @property
    def decided_on(self) -> Literal["nominal", "select"]:
        """Part of the suite whose scores decide: the episodes that the curve shows, or those of `select`."""
        return "select" if self.select else "nominal"

    @property
    def deciding(self) -> int:
        """Episodes of a score that decides."""
        return (self.select or self.episodes) * len(self.tasks)


def suite_of(
    tasks: tuple[str, ...],
    episodes: int,
    horizon: int | Literal["auto"] | Mapping[str, int],
    settle: int,
    success: Literal["once", "at_end"],
    block: int = 0,
    shift: str = "nominal",
) -> Suite:
    """Return a suite whose tasks have the horizon of a sweep file: one number, one per task, or `auto`."""
    if isinstance(horizon, int):
        return Suite(tasks, episodes, EpisodeRules(horizon, settle, success), block, shift)
    of_task = {task: horizon_of(task) if horizon == "auto" else horizon[task] for task in tasks}
    return Suite.of(tasks, episodes, EpisodeRules(1, settle, success), of_task, block, shift)


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020)."""

    first: PositiveInt | None = None
    """Steps after which an arm may be stopped for the first time; empty: at the first checkpoint."""
    reduction: Annotated[float, Field(gt=1)] = 3
    """The best 1 of this number of arms continues after a rung; the next rung is at this many times the
    steps.
    """


class Median(Section):
    """The median stopping rule (Golovin et al. 2017)."""

    first: PositiveInt | None = None
    """Steps after which an arm may be stopped for the first time; empty: at the first checkpoint."""
    arms: PositiveInt = 3
    """Number of arms with scores from which on an arm is compared with their median."""


class Optuna(Section):
    """Optuna's TPE sampler proposes the arms."""

    trials: PositiveInt
    """Arms to try."""
    seed: NonNegativeInt = 0
    """Seed of the sampler."""
    against: Literal["", "demo_count", "seconds"] = ""
    """What success is weighed against, as a second objective: demos, or the seconds of computing an arm took;
    empty: success alone.
    """


DEMOS_FOR = "demos_for_"
"""Beginning of `search.next.target` before a success rate."""
NEXT_COUNTS = 3
"""Demo counts that a next-arm search takes at least (`stats.forecast.FEWEST_COUNTS`)."""


class Next(Section):
    """The arm that narrows the forecast of a target most for its cost is trained next, of the arms that
    `demo_count`, `action_free_ratio` and `seeds` name; until none is worth its cost.
    """

    target: str = "demos_for_0.9"
    """What is to be known: `demos_for_0.9`, the demos that a success rate of 0.9 takes with the lowest ratio,
    or any other rate; `equivalence`: what action-free video is worth in demos; `area`: the mean success rate
    over the demo counts, with the lowest ratio.
    """
    budget: PositiveFloat | None = None
    """What all arms of the sweep may cost, in money if the sweep has `prices`, in hours of GPUs else, and of
    CPUs where no GPU is used; no arm is begun that is expected to cost more than what is left. With a higher
    one the same command goes on. Empty: unlimited.
    """
    ahead: PositiveInt = 2
    """Most arms in progress without a score; more use a cluster better, and each is chosen from fewer
    scores.
    """

    @field_validator("target")
    @classmethod
    def _known(cls, target: str) -> str:
        if target in ("equivalence", "area") or re.fullmatch(rf"{DEMOS_FOR}0\.\d*[1-9]", target):
            return target
        raise ValueError(f"unknown target {target}; write {DEMOS_FOR}0.9, equivalence or area")

    @property
    def rate(self) -> float | None:
        """Success rate whose demos are to be known; None for another target."""
        return float(self.target.removeprefix(DEMOS_FOR)) if self.target.startswith(DEMOS_FOR) else None


class Search(Section):
    """Which arms are trained, and how far. Decisions follow the lower bound of the success rate's 95 %
    interval, or the upper bound of the action error's, never the loss.
    """

    asha: Asha | None = None
    """Stops the arms that are behind at each rung."""
    median: Median | None = None
    """Stops an arm whose best score is below the median of the others' averages up to the same step."""
    optuna: Optuna | None = None
    """Proposes arms one after another instead of playing the grid; may be combined with one of the others."""
    next: Next | None = None
    """Trains those arms of the grid that say most about a target for their cost, one after another."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`grid`, `asha`, `median` and `next` alone are their defaults."""
        if not isinstance(value, str):
            return value
        if value == "optuna":
            raise ValueError(
                "optuna needs to know how many arms to try: write search: {optuna: {trials: 40}}"
            )
        if value not in ("grid", "asha", "median", "next"):
            raise ValueError(f"unknown search {value}; there are grid, asha, median, optuna and next")
        return {} if value == "grid" else {value: {}}

    @model_validator(mode="after")
    def _one_rule(self) -> "Search":
        if self.asha and self.median:
            raise ValueError("asha and median are two rules for one decision; keep one of them")
        if self.next and self.optuna:
            raise ValueError("optuna and next both choose the arms; keep one of them")
        if self.next and (self.asha or self.median):
            raise ValueError(
                "next takes the score of every arm's last checkpoint, and asha and median stop arms before;"
                " leave them out"
            )
        return self


class Budget(Section):
    """What may be spent. A sweep that reaches a limit stops cleanly with what it knows; with a higher one the
    same command goes on.
    """

    max_gpu_hours: PositiveFloat | None = None
    """Hours of GPUs, over all runs of the sweep."""
    max_episodes: PositiveInt | None = None
    """Rollouts, over all runs of the sweep."""
    max_wall: PositiveFloat | None = None
    """Hours of wall clock of one run."""


class Device(Section):
    """The GPUs of a plan's estimate of cost and memory; nothing else reads them."""

    card: Literal["A100", "H100", "H200", "L4", "L40S", "RTX 4090"] | None = None
    """Name of a GPU, whose speed is its maker's."""
    tflops: PositiveFloat | None = None
    """In place of the card's: TFLOPS in fp16 and bf16, dense."""
    tflops_fp32: PositiveFloat | None = None
    """In place of the card's: TFLOPS in fp32."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of that speed which is reached. The paper's times come to 0.19 in training (14 days on 8 A100)
    and 0.16 in acting (9 s per answer).
    """
    gpus: PositiveInt | None = None
    """Number of GPUs; a plan refuses more `train.workers`."""

    @model_validator(mode="after")
    def _has_a_speed(self) -> "Device":
        if self.card is None and (self.tflops is None or self.tflops_fp32 is None):
            raise ValueError("write a card, such as {card: A100}, or {tflops: 312, tflops_fp32: 19.5}")
        return self


class Prices(Section):
    """What things cost, in any one currency; with prices, costs are reported in money too."""

    gpu_hour: NonNegativeFloat = 0.0
    """One GPU for an hour."""
    cpu_hour: NonNegativeFloat = 0.0
    """One core for an hour."""
    gib_read: NonNegativeFloat = 0.0
    """Reading a GiB from the episode store."""
