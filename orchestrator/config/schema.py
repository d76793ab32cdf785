"""The sections of a sweep file, field by field. `orchestrator/config/sweep_config.py` puts them together."""

import difflib
import re
from pathlib import Path
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
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from orchestrator.data.merged_store import StorePart
from policy.config import Objective, Recipe
from sim_workers.envs.registry import TASKS


def _known_task(task: str) -> str:
    if task not in TASKS:
        close = difflib.get_close_matches(task, TASKS, 1)
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
        )


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
    """Tasks that are demonstrated; empty: all. Of every other task in the store, `demo_count` episodes are
    videos without actions.
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


class PolicyChoice(Section):
    """Which policy learns, and what it starts from."""

    preset: Literal["tiny", "svd-256"] = "tiny"
    """`tiny` runs on one CPU core; `svd-256` is the paper's size."""
    weights: str = ""
    """Where the video model starts, in diffusers' format: empty for the preset's own (`tiny`: shipped here;
    `svd-256`: SVD-XT from the hub), `none` for random weights, or a hub id, a folder, an s3:// URI."""
    baselines: Annotated[tuple[Literal["diffusion_policy"], ...], AfterValidator(distinct)] = ()
    """`diffusion_policy`: beside every demo count, a behaviour-cloning policy without video, trained for as
    many steps on the same demos.
    """

    @field_validator("weights")
    @classmethod
    def _there(cls, weights: str) -> str:
        named_elsewhere = (
            weights in ("", "none")
            or weights.startswith("s3://")
            or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[0-9a-f]{40})?", weights)
        )
        if not named_elsewhere and not Path(weights).is_dir():
            raise ValueError(
                f"there is no folder {weights}; write a folder, a hub id (owner/name), an s3:// URI, or none"
            )
        return weights


class Train(Recipe):
    """How one arm is trained. Every arm gets the same number of optimiser steps."""

    mode: Literal["joint", "joint_detached", "two_stage", "action_only"] = "joint"
    """`joint`: video and action losses together, the action's reaches the video model; `joint_detached`: it
    does not. `two_stage`: the video model first, on all of the arm's episodes, then the action head on the
    frozen one. `action_only`: the head on the video model as it starts.
    """
    steps: PositiveInt
    """Optimiser steps."""
    video_steps: PositiveInt | None = None
    """Optimiser steps of stage 1 where `mode` is `two_stage`; empty: as many as `steps`."""
    videos: Literal["arm", "sweep"] = "arm"
    """What stage 1 learns from: `arm`: the arm's own demos and action-free episodes; `sweep`: those of all
    arms of its seed, so that they share one stage 1, and the demo count says for how many of the videos
    actions are known. Stage 1 is trained once for all arms it is the same for.
    """
    batch_size: PositiveInt = 32
    """Clips per optimiser step, over all workers; a multiple of their number."""
    workers: PositiveInt = 1
    """Training processes; one GPU each where there are GPUs."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints; every checkpoint is scored, the last step always is one."""

    @field_validator("workers")
    @classmethod
    def _share_equally(cls, workers: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size", workers)
        if batch_size % workers:
            raise ValueError(f"{workers} workers cannot share batch_size {batch_size} equally")
        return workers

    @property
    def objective(self) -> Objective:
        """Of the run whose checkpoints are scored."""
        return self.mode if self.mode in ("joint", "joint_detached") else "action"

    def shaping(self) -> dict[str, Any]:
        """Return the fields that shape a policy's weights after a given step.

        `checkpoint_every` and `feature_cache_mb` are left out. `steps` is left out if the learning rate is
        constant: training to more steps then passes through the same weights. `video_steps`, by default
        `steps`, counts in mode `two_stage`.
        """
        shaping = self.model_dump(mode="json", exclude={"checkpoint_every", "feature_cache_mb"})
        shaping["video_steps"] = (self.video_steps or self.steps) if self.mode == "two_stage" else None
        if self.schedule == "constant":
            del shaping["steps"]
        return shaping


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
    """Of one checkpoint's verdict, over all its looks together."""

    @model_validator(mode="after")
    def _one_question(self) -> "Decide":
        if (self.threshold is None) == (not self.against):
            raise ValueError("write {threshold: 0.8} or {against: demos-50}, and only one of them")
        return self


NOTHING_IS_PLAYED = "held-out episodes are recordings, of which no simulator plays any; leave out"


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
    """robosuite tasks; each must be demonstrated in the episode store. Must be there unless `held_out` is."""
    episodes: PositiveInt = Field(default=None, validate_default=True)
    """Per task. Must be there unless `held_out` is."""
    horizon: PositiveInt = Field(default=None, validate_default=True)
    """Control steps until an episode counts as failed (20 steps are one second). Must be there unless
    `held_out` is.
    """
    settle: NonNegativeInt = 10
    """Control steps that an episode goes on after the first success, to see whether it lasts."""
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
    rung: Literal["", "faithful", "unguided", "truncated", "one_pass"] = ""
    """How an observation becomes actions, from 30 joint denoising steps with guidance down to one video pass;
    empty: the preset's own.
    """
    decide: Decide | None = None
    """Play no more of the episodes than it takes to decide something; empty: all of them. Shifted worlds are
    always played whole. A rate that ends early is biased away from its threshold or reference by one to four
    points; its interval accounts for that. Changing the rule loses nothing: what was played is kept, and the
    rest is played when it is asked for.
    """

    @property
    def against(self) -> str:
        """Name of the arms that others' scores are compared with; empty if there are none."""
        return self.decide.against if self.decide else ""

    @property
    def fewest(self) -> int:
        """Episodes that a score is made of at least."""
        return min(self.episodes, self.decide.look_every if self.decide else self.episodes) * len(self.tasks)

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

    @field_validator("settle", "success", "shifts", "gl", "decide")
    @classmethod
    def _simulated(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse with `held_out` what is about simulations."""
        default = cls.model_fields[str(info.field_name)].default
        if info.data.get("held_out") is not None and value != default:
            raise ValueError(f"{NOTHING_IS_PLAYED} {info.field_name} or suite.held_out")
        return value

    video_clips: NonNegativeInt = 8
    """Held-out clips per task on which every checkpoint's generated video is compared with what happened, as
    MLflow metrics; they are cut from episodes that no arm trains on. 0: none. No score depends on it."""

    @property
    def listed(self) -> int:
        """Episodes that a score is made of."""
        return self.episodes * len(self.tasks)


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020)."""

    first: PositiveInt | None = None
    """Steps after which an arm may be stopped for the first time; empty: at the first checkpoint."""
    reduction: Annotated[float, Field(gt=1)] = 3
    """The best 1 of this number of arms continues after a rung; the next rung is this factor later."""


class Median(Section):
    """The median stopping rule (Golovin et al. 2017)."""

    first: PositiveInt | None = None
    """Steps after which an arm may be stopped for the first time; empty: at the first checkpoint."""
    arms: PositiveInt = 3
    """So many arms must have scores before one is compared with their median."""


class Optuna(Section):
    """Optuna's TPE sampler proposes the arms."""

    trials: PositiveInt
    """Arms to try."""
    seed: NonNegativeInt = 0
    """Of the sampler."""
    against: Literal["", "demo_count", "seconds"] = ""
    """What success is weighed against, as a second objective: demos, or the seconds of computing an arm took;
    empty: success alone.
    """


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

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`grid`, `asha` and `median` alone are their defaults."""
        if not isinstance(value, str):
            return value
        if value == "optuna":
            raise ValueError(
                "optuna needs to know how many arms to try: write search: {optuna: {trials: 40}}"
            )
        if value not in ("grid", "asha", "median"):
            raise ValueError(f"unknown search {value}; there are grid, asha, median and optuna")
        return {} if value == "grid" else {value: {}}

    @model_validator(mode="after")
    def _one_rule(self) -> "Search":
        if self.asha and self.median:
            raise ValueError("asha and median are two rules for one decision; keep one of them")
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


class Prices(Section):
    """What things cost, in any one currency; with prices, costs are reported in money too."""

    gpu_hour: NonNegativeFloat = 0.0
    """One GPU for an hour."""
    cpu_hour: NonNegativeFloat = 0.0
    """One core for an hour."""
    gib_read: NonNegativeFloat = 0.0
    """Reading a GiB from the episode store."""
