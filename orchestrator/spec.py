"""The sweep file: what a person asks for, validated whole before anything is spent. Only choices; no computation, no class paths."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.arms import Arm, expand
from orchestrator.data.episodes import EpisodeError
from orchestrator.data.store import load_manifest
from orchestrator.data.subset import SubsetError, choose
from orchestrator.provenance import digest, weights_label
from orchestrator.storage import StorageError, open_storage
from policy.config import Objective, Recipe
from policy.presets import weights_source
from sim_workers.backends import TASKS, refusal, unfit
from sim_workers.suite import Rules, Suite

if TYPE_CHECKING:
    from orchestrator.plan import Plan


class SweepError(Exception):
    """Everything that is wrong with a sweep, one sentence each."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"{where}: {count}\n" + "\n".join(f"  - {problem}" for problem in problems))


def _known_task(task: str) -> str:
    if task not in TASKS:
        close = difflib.get_close_matches(task, TASKS, 1)
        raise ValueError(f"unknown task {task}; " + (f"did you mean {close[0]}?" if close else "sim_workers/README.md lists them"))
    return task


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("each value may appear once")
    return values


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Data(_Part):
    """Which episodes, and how many of them an arm gets."""

    episodes: str
    """Episode store: a folder or an s3:// URI, written by jobs.collect or jobs.ingest."""
    demo_count: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_distinct)]
    """Episodes with actions per task; a smaller count is always contained in a larger one."""
    action_free_ratio: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1), AfterValidator(_distinct)] = (0.0,)
    """Action-free episodes per demo. Clips of both are drawn in the same proportion, in every batch."""
    labelled_tasks: Annotated[tuple[Annotated[str, AfterValidator(_known_task)], ...], AfterValidator(_distinct)] = ()
    """Tasks that are demonstrated; empty: all. Of every other task in the store, `demo_count` episodes are videos without actions."""
    on_corrupt: Literal["stop", "quarantine"] = "stop"
    """A damaged episode: `stop` names it and ends; `quarantine` reads all that the sweep needs beforehand, sets damaged ones aside,
    and the next in order take their places, so no demo count changes."""


class PolicyChoice(_Part):
    """Which policy learns, and what it starts from."""

    preset: Literal["tiny", "svd-256"] = "tiny"
    """`tiny` runs on one CPU core; `svd-256` is the paper's size."""
    weights: str = ""
    """Where the video model starts, in diffusers' format: empty for the preset's own (`tiny`: shipped here; `svd-256`: SVD-XT from the hub),
    `none` for random weights, or a hub id, a folder, an s3:// URI."""
    baselines: Annotated[tuple[Literal["diffusion_policy"], ...], AfterValidator(_distinct)] = ()
    """`diffusion_policy`: beside every demo count, a behaviour-cloning policy without video, trained for as many steps on the same demos."""

    @field_validator("weights")
    @classmethod
    def _there(cls, weights: str) -> str:
        named_elsewhere = weights in ("", "none") or weights.startswith("s3://") or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", weights)
        if not named_elsewhere and not Path(weights).is_dir():
            raise ValueError(f"there is no folder {weights}; write a folder, a hub id (owner/name), an s3:// URI, or none")
        return weights


class Train(Recipe):
    """How one arm is trained. Every arm gets the same number of optimiser steps."""

    mode: Literal["joint", "joint_detached", "two_stage", "action_only"] = "joint"
    """`joint`: video and action losses together, the action's reaches the video model; `joint_detached`: it does not. `two_stage`: the video model
    first, on all of the arm's episodes, then the action head on the frozen one. `action_only`: the head on the video model as it starts."""
    steps: PositiveInt
    """Optimiser steps."""
    video_steps: PositiveInt | None = None
    """Optimiser steps of stage 1 where `mode` is `two_stage`; empty: as many as `steps`."""
    videos: Literal["arm", "sweep"] = "arm"
    """What stage 1 learns from: `arm`: the arm's own demos and action-free episodes; `sweep`: those of all arms of its seed, so that they share one
    stage 1, and the demo count says for how many of the videos actions are known. Stage 1 is trained once for all arms it is the same for."""
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


class SuiteChoice(_Part):
    """The evaluation episodes: the same initial states for every checkpoint of every arm."""

    tasks: Annotated[tuple[Annotated[str, AfterValidator(_known_task)], ...], Field(min_length=1), AfterValidator(_distinct)]
    """robosuite tasks; each must be demonstrated in the episode store."""
    episodes: PositiveInt
    """Per task."""
    horizon: PositiveInt
    """Control steps until an episode counts as failed (20 steps are one second)."""
    settle: NonNegativeInt = 10
    """Control steps that an episode goes on after the first success, to see whether it lasts."""
    success: Literal["once", "at_end"] = "once"
    """What counts: the task done at any step, or in the last step played. Both are recorded, and the first step it was done at."""
    shifts: Annotated[tuple[Literal["lighting", "texture", "camera", "object", "placement", "distractors"], ...], AfterValidator(_distinct)] = ()
    """Shifted worlds that every arm's last checkpoint is scored in as well, as many episodes each: a number of its own per shift."""
    gl: Literal["egl", "osmesa"] = "egl"
    """What renders the pictures: EGL on a GPU or, through Mesa, on a CPU; OSMesa where there is no EGL."""
    rung: Literal["", "faithful", "unguided", "truncated", "one_pass"] = ""
    """How a look becomes actions, from 30 joint denoising steps with guidance down to one video pass; empty: the preset's own."""


class Sweep(_Part):
    """One sweep file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """Names the runs in MLflow and the folder in `storage`: lower case, digits, `.`, `_`, `-`."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)] = (0,)
    """One replicate each: a seed fixes subset order and training noise together."""
    data: Data
    """Which episodes, and how many of them an arm gets."""
    policy: PolicyChoice = PolicyChoice()
    """Which policy learns."""
    train: Train
    """How one arm is trained. Every arm gets the same number of optimiser steps."""
    suite: SuiteChoice
    """The evaluation episodes: the same initial states for every checkpoint of every arm."""
    rollout_actors: PositiveInt = 2
    """Simulator processes; the scores do not depend on how many."""
    search: Literal["grid"] = "grid"
    """`grid`: every combination of demo count, action-free ratio and seed."""
    storage: str = "runs"
    """Folder or s3:// URI for checkpoints, outcomes and videos; relative to where the command runs."""
    mlflow: str = ""
    """MLflow tracking URI; empty: a database `mlflow.db` in `storage`."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Sweep":
        if refused := [why for task in self.suite.tasks for shift in self.suite.shifts if (why := refusal(task, shift))]:
            raise ValueError(f"suite.shifts: {'; '.join(refused)}")
        if self.train.videos == "sweep" and (self.train.mode != "two_stage" or len(self.data.action_free_ratio) > 1):
            raise ValueError("train.videos: sweep asks for train.mode two_stage and for one data.action_free_ratio: all arms see the same videos")
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> "Sweep":
        """Read a sweep file; `overrides` are `dotted.key=value`, the value in YAML. SweepError lists every mistake."""
        where = str(path)
        try:
            raw = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError:
            raise SweepError(where, ["there is no such file"]) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SweepError(where, [f"not readable as YAML: {' '.join(str(error).split())}"]) from None
        if not isinstance(raw, dict):
            raise SweepError(where, ["a sweep file is a mapping of fields; see jobs/README.md"])
        for override in overrides:
            _override(raw, override, where)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise SweepError(where, [_sentence(cls, item) for item in error.errors()] + _store_problems_of(raw)) from None

    def plan(self) -> "Plan":
        """What the sweep would do and cost; SweepError with every problem if its store cannot serve it."""
        from orchestrator.plan import make_plan

        return make_plan(self)

    def arms(self) -> list[Arm]:
        return expand(self.data.demo_count, self.data.action_free_ratio, self.seeds, self.policy.baselines)

    def to_suite(self, shift: str = "nominal") -> Suite:
        return Suite(self.suite.tasks, self.suite.episodes, shift=shift, rules=Rules(self.suite.horizon, self.suite.settle, self.suite.success))

    def checkpoint_steps(self) -> list[int]:
        """Steps after which an arm is saved and scored."""
        steps = list(range(self.train.checkpoint_every, self.train.steps + 1, self.train.checkpoint_every))
        return steps if steps and steps[-1] == self.train.steps else [*steps, self.train.steps]

    def to_yaml(self) -> str:
        """The resolved file, itself a valid sweep file."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def training_fingerprint(self, manifest_fingerprint: str, quarantined: Iterable[str], code: str) -> str:
        """Of everything besides the arm that shapes a trained policy."""
        return digest(
            [
                manifest_fingerprint,
                sorted(quarantined),
                sorted(self.data.labelled_tasks),
                code,
                self.policy.model_dump(mode="json", exclude={"baselines"}),
                weights_label(weights_source(self.policy.preset, self.policy.weights)),
                [max(self.data.demo_count), max(self.data.action_free_ratio)] if self.train.videos == "sweep" else [],
                self.train.model_dump(mode="json"),
            ]
        )


def _override(raw: dict[str, Any], override: str, where: str) -> None:
    key, separator, value = override.partition("=")
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise SweepError(where, [f"--set {override}: {parent} has no fields"])
    if not separator or not last:
        raise SweepError(where, [f"--set {override}: write it as field=value, for example --set train.steps=200"])
    place[last] = yaml.safe_load(value)


def _sentence(model: type[BaseModel], error: Any) -> str:
    """A pydantic error as a person would say it."""
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            annotation = model.model_fields[part].annotation
            assert isinstance(annotation, type)
            assert issubclass(annotation, BaseModel)
            model = annotation
        close = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, 1)
        return f"{location}: unknown field" + (f"; did you mean {close[0]}?" if close else f"; the fields here are {', '.join(model.model_fields)}")
    if error["type"] == "missing":
        return f"{location}: missing"
    message = error["msg"].removeprefix("Value error, ")
    if not location:  # about several fields at once; the message names them
        return str(message)
    return f"{location}: {message[0].lower()}{message[1:]}" + ("" if error["type"] == "value_error" else f", not {error['input']!r}")


def store_problems(data: Data, tasks: tuple[str, ...]) -> list[str]:
    """Everything about the episode store that would stop a sweep: no store, a task nobody demonstrated, too few episodes."""
    try:
        manifest = load_manifest(open_storage(data.episodes))
    except (EpisodeError, StorageError) as error:
        return [f"data.episodes: {error}"]
    if told := [f"on {task} here. {'; '.join(different)}" for task in tasks if (different := unfit(manifest.contract, task))]:
        return [f"data.episodes: a policy trained on {data.episodes} could not be scored {told[0]}"]
    shown = set(manifest.tasks)
    problems = [f"suite.tasks: nobody demonstrated {task}; the store shows {', '.join(sorted(shown))}" for task in tasks if task not in shown]
    try:
        choose(manifest, max(data.demo_count), max(data.action_free_ratio), seed=0, labelled_tasks=data.labelled_tasks)
    except SubsetError as error:
        problems.append(f"data: the largest arm does not fit. {error}")
    return problems


def _store_problems_of(raw: dict[str, Any]) -> list[str]:
    """What is wrong with the episode store, as far as a file with mistakes elsewhere lets one tell."""
    try:
        data = Data.model_validate(raw.get("data"))
        tasks = SuiteChoice.model_validate(raw.get("suite")).tasks
    except ValidationError:
        return []
    return store_problems(data, tasks)
