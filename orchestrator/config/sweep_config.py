"""The sweep file: what a person asks for, validated whole before anything is spent. Only choices; no
computation, no class paths.
"""

import difflib
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_serializer,
    model_validator,
)

from orchestrator.code_fingerprint import TRAINING_CODE, code_hashes
from orchestrator.config.arms import Arm, expand_grid, is_reference, reference_of
from orchestrator.config.lines import Line, LineData, PolicyChoice, lines_of
from orchestrator.config.recipes import with_recipes, without_recipes
from orchestrator.config.schema import (
    NEXT_COUNTS,
    Budget,
    Data,
    Device,
    Next,
    Prices,
    Range,
    Search,
    Section,
    SuiteConfig,
    Train,
    distinct,
)
from orchestrator.config.yaml_text import MOST_BYTES as YAML_BYTES
from orchestrator.config.yaml_text import read_yaml
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.manifest import Manifest, MergedPart
from orchestrator.data.merged_store import MergeError, merge, stores_key
from orchestrator.data.subset import Labels, Subset, SubsetError, evaluation_episodes, select_episodes
from orchestrator.fingerprints import Key
from orchestrator.provenance import TRAINING_PACKAGES
from orchestrator.redaction import credentials_in, fields_with_credentials, redact, strip_credentials
from orchestrator.storage.base import StorageError, open_storage
from policy.config import DIFFUSION_POLICY, VIDEO_ACTION, PolicyConfig, PolicySettings, SamplerConfig
from policy.errors import DemoscaleError
from policy.presets import PRESETS, learner_config, policy_config, weights_source
from sim_workers.envs.registry import refusal, unfit
from sim_workers.rollout.suite import Suite


class SweepError(DemoscaleError):
    """Everything that is wrong with a sweep, one sentence each; no secrets are repeated."""

    exit_code = 2

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = [redact(problem) for problem in problems]
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(
            f"{redact(where)}: {count}\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        )


class SweepConfig(Section):
    """One sweep file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """Names the runs in MLflow and the folder in `storage`: lower case, digits, `.`, `_`, `-`."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(distinct)] = (0,)
    """One replicate each: a seed fixes subset order and training noise together. With fewer than three the
    curve describes trained policies and says nothing about recipes.
    """
    data: Data
    """Which episodes, and how many of them an arm gets."""
    policy: PolicyChoice = PolicyChoice()
    """Which policy learns."""
    train: Train
    """How one arm is trained; `match` says what arms have in common."""
    suite: SuiteConfig
    """The evaluation episodes: the same initial states for every checkpoint of every arm."""
    rollout_actors: PositiveInt = 2
    """Simulator processes; the scores do not depend on how many."""
    search: Search = Search()
    """`grid`: every combination of demo count, action-free ratio and seed, all trained to the end; or `asha`,
    `median`, {asha: {reduction: 3}}, {optuna: {trials: 40}}, {next: {target: demos_for_0.9, budget: 40}}."""
    attempts: PositiveInt = 3
    """How often the training of an arm is tried; then it counts as failed, and the other arms continue."""
    budget: Budget = Budget()
    """What may be spent."""
    prices: Prices = Prices()
    """What things cost."""
    device: Device | None = None
    """The GPUs that `demoscale plan` estimates cost and memory for, {card: A100, gpus: 8}; empty: none."""
    storage: str = "runs"
    """Folder or s3:// URI for checkpoints, outcomes and videos; relative to where the command runs."""
    mlflow: str = ""
    """MLflow tracking URI; empty: a database `mlflow.db` in `storage`. A server's token belongs in the
    environment (`MLFLOW_TRACKING_TOKEN`).
    """

    @field_serializer("mlflow")
    def _without_password(self, uri: str) -> str:
        """Return the URI without credentials, which a reader takes from the environment."""
        return strip_credentials(uri)

    @model_validator(mode="before")
    @classmethod
    def _holds_no_credentials(cls, raw: Any) -> Any:
        """Refuse credentials in the file: it is stored in the storage, in MLflow and on the cluster."""
        if problems := credential_problems(raw) if isinstance(raw, dict) else []:
            raise ValueError("; ".join(problems))
        return raw

    @model_validator(mode="before")
    @classmethod
    def _with_recipes(cls, raw: Any) -> Any:
        """Fill fields without a value from the recipes of the presets."""
        return with_recipes(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _makes_sense(self) -> "SweepConfig":
        if problems := list(contradictions({name: getattr(self, name) for name in type(self).model_fields})):
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> "SweepConfig":
        """Read a sweep file; `overrides` are `dotted.key=value`, the value in YAML. SweepError lists every
        mistake.
        """
        where, raw = str(path), _read(path)
        for override in overrides:
            _override(raw, override, where)
        _refuse_credentials(raw, where)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise SweepError(where, [*_mistakes(cls, raw, error), *_store_problems_of(raw)]) from None

    @classmethod
    def stored(cls, raw: dict[str, Any], where: str) -> "SweepConfig":
        """Return a sweep that an earlier run wrote to a storage, without the credentials that versions before
        0.2 allowed in it. Raises SweepError with every mistake.

        raw: as `SweepConfig` dumps it. where: what error messages name.
        """
        try:
            return cls.model_validate(without_recipes(_without_credentials(raw)))
        except ValidationError as error:
            raise SweepError(where, _mistakes(cls, raw, error)) from None

    def grid(self) -> list[Arm]:
        """Every combination of what the file lists; none where a search proposes the arms."""
        return [] if self.search.next else self.possible_arms()

    def possible_arms(self) -> list[Arm]:
        """Every arm that the sweep may train: the grid's, of which a next-arm search trains some; none where
        Optuna proposes them.
        """
        if self.search.optuna:
            return []
        assert isinstance(self.data.demo_count, tuple)
        assert isinstance(self.data.action_free_ratio, tuple)
        return _grid(self.data, self.seeds, self.lines)

    @property
    def lines(self) -> tuple[Line, ...]:
        """Lines of the curve, in the order of the file."""
        return lines_of(self.policy)

    def line(self, arm: Arm) -> Line:
        """Return the arm's line. Raises KeyError if the file has none of its name."""
        return self.line_named(arm.kind)

    def train_of(self, arm: Arm) -> Train:
        """Return how an arm is trained: with the settings of its line, and as many steps as `train.match`
        gives it.
        """
        own = self.line_train(self.line(arm))
        if own.match != "epochs" or arm.demo_count == self.data.most_demos:
            return own
        return own.scaled(arm.demo_count / self.data.most_demos)

    def line_train(self, line: Line) -> Train:
        """Return how the arm of a line with the most demos is trained."""
        return Train.model_validate(self.train.model_dump() | dict(line.train)) if line.train else self.train

    def preset_of(self, line: Line) -> str:
        """Return the preset of one of the package's own lines."""
        return line.preset or self.policy.preset

    def weights_of(self, line: Line) -> str:
        """Return what the video models of a line start from, as in the sweep file."""
        return self.policy.weights if line.weights is None else line.weights

    def source_of(self, line: Line) -> str:
        """Return where the video models of a line start: a folder, hub id or URI; empty for random
        weights.
        """
        return weights_source(self.preset_of(line), self.weights_of(line))

    def config_of(self, line: Line) -> PolicyConfig:
        """Return the configuration of a line's policy that is trained in this package's processes."""
        preset, settings = self.preset_of(line), settings_of(self.policy, line)
        if line.learner:
            return learner_config(preset, line.learner, line.options, settings)
        return policy_config(preset, line.policy, settings)

    def sampler_of(self, line: Line) -> SamplerConfig | None:
        """Return how looks become actions in a line; None for an external policy, which does that itself."""
        return _sampler(self.policy, line, self.suite) if line.own else None

    def largest(self, seed: int | None = None, line: str = VIDEO_ACTION) -> Arm:
        """Return the arm whose episodes contain those of every other arm of its seed (default: the first) and
        of lines with the same labels. line: its name; one that the file does not have has the labels of
        `data`.
        """
        own = next((one for one in self.lines if one.name == line), None)
        return _largest(self.data, self.seeds[0] if seed is None else seed, own, line)

    def labels_of(self, arm: Arm) -> Labels:
        """Return the labelled tasks of an arm's line, and the number of videos of the others."""
        return labels_of(self.data, next((line for line in self.lines if line.name == arm.kind), None))

    def select(
        self,
        manifest: Manifest,
        arm: Arm,
        exclude: Set[str] = frozenset(),
        evaluation: Set[str] = frozenset(),
    ) -> Subset:
        """Choose the episodes of an arm with the labels of its line, as `select_episodes` does."""
        return select_episodes(manifest, arm, exclude, self.labels_of(arm), evaluation)

    def is_reference(self, arm: Arm) -> bool:
        """Whether other arms' scores are compared with it: it is trained first and scored whole."""
        return is_reference(arm, self.suite.against)

    @property
    def sampler(self) -> SamplerConfig:
        """How looks become actions where checkpoints are scored."""
        own = policy_config(self.policy.preset, settings=self.policy.settings)
        return self.suite.sampler.applied(own.sampler_on(self.suite.rung))

    def to_suite(self, shift: str = "nominal") -> Suite:
        """Return the suite that every arm is scored on, or its version under a shift; `select`: the one on
        which searches decide.
        """
        if shift == "select":
            return self.suite.to_select_suite()
        return self.suite.to_suite(self.suite.tasks, shift=shift)

    @property
    def scoring_processes(self) -> int:
        """Processes that query policies: the simulators, or the one that reads held-out episodes."""
        return self.rollout_actors if self.suite.held_out is None else 1

    def checkpoint_steps(self, arm: Arm | None = None) -> list[int]:
        """Return the steps after which an arm is saved and scored, seconds with a budget of time; None: an
        arm with the most demos.
        """
        train = self.train_of(arm) if arm else self.train
        steps = list(range(train.checkpoint_every, train.end + 1, train.checkpoint_every))
        return steps if steps and steps[-1] == train.end else [*steps, train.end]

    def scored_steps(self, arm: Arm | None = None) -> list[int]:
        """Return those of `checkpoint_steps` whose checkpoints are scored: every `suite.every`th, and the
        last.
        """
        steps = self.checkpoint_steps(arm)
        every = self.suite.every
        return [step for number, step in enumerate(steps, 1) if number % every == 0 or number == len(steps)]

    def line_named(self, name: str) -> Line:
        """Return a line by its name. Raises KeyError if the file has none of it."""
        return {line.name: line for line in self.lines}[name]

    def to_yaml(self) -> str:
        """Return the resolved sweep file, with all defaults and without credentials."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @property
    def weights(self) -> str:
        """Where the arms' video models start: a folder, hub id or URI; empty for random weights."""
        return weights_source(self.policy.preset, self.policy.weights)

    def data_parts(
        self,
        manifest_fingerprint: str,
        quarantined: Iterable[str],
        evaluation: Iterable[str] = (),
        stores: Sequence[MergedPart] = (),
        arm: Arm | None = None,
    ) -> dict[str, Any]:
        """Return the parts of a training key that are of the data. evaluation, stores, arm: as for
        `training_key`.
        """
        labels = self.labels_of(arm) if arm else labels_of(self.data)
        parts: dict[str, Any] = {
            "data": manifest_fingerprint,
            "quarantined": sorted(quarantined),
            "labelled tasks": sorted(labels.tasks),
        }
        sees_videos = arm is None or self.line(arm).swept
        if labels.tasks and labels.videos is not None and sees_videos:
            parts["unlabelled videos"] = labels.videos
        if self.suite.proprio is not None:
            parts["proprioception"] = list(self.suite.proprio)
        if held_out := sorted(evaluation):
            parts["held out"] = held_out
        if stores:
            parts["stores"] = stores_key(stores)
        return parts

    def training_key(
        self,
        manifest_fingerprint: str,
        quarantined: Iterable[str],
        weights: str,
        packages: Mapping[str, str],
        evaluation: Iterable[str] = (),
        stores: Sequence[MergedPart] = (),
        arm: Arm | None = None,
        learner_code: Mapping[str, str] = MappingProxyType({}),
    ) -> Key:
        """Return everything besides the arm that shapes a trained policy of this package.

        evaluation: ids of the episodes held out from every arm; a sweep without any has no part of them.
        stores: parts of several stores; a sweep of one whole store has no part of them.
        weights: the `weights_label` of the weights that it starts from. packages: versions by name, at least
        those of TRAINING_PACKAGES. arm: whose line's settings and steps count; None: those of the sweep.
        learner_code: of the package that offers its policy; empty for the package's own policies.
        """
        train, preset = (
            (self.train_of(arm), self.preset_of(self.line(arm))) if arm else (self.train, self.policy.preset)
        )
        own: dict[str, Any] = {}
        videos = [self.data.most_demos, self.data.highest_ratio]
        if arm and (line := self.line(arm)).learner:
            own = {"learner": line.learner, "options": dict(line.options)}
        elif arm and line.imagines:
            videos = [self.data.most_demos, self.largest(line=arm.kind).action_free_ratio]
        settings = settings_of(self.policy, self.line(arm)) if arm else self.policy.settings
        if settings.applied(PRESETS[preset]) != PRESETS[preset]:
            own["settings"] = settings.model_dump(mode="json", exclude_none=True)
        parts = {
            **self.data_parts(manifest_fingerprint, quarantined, evaluation, stores, arm),
            "policy": {"preset": preset} | own,
            "weights": weights,
            "videos": videos if train.videos == "sweep" else [],
            "recipe": train.shaping(),
            "packages": {name: packages[name] for name in TRAINING_PACKAGES},
            "code": code_hashes(TRAINING_CODE),
        }
        if learner_code:
            parts["learner_code"] = dict(learner_code)
        return Key("training", parts)


def labels_of(data: Data, line: Line | None = None) -> Labels:
    """Return the labelled tasks of a line, and the number of videos of the others; None: of lines that say
    nothing themselves.
    """
    own = (line and line.data) or LineData()
    tasks = data.labelled_tasks
    if own.labelled is not None:
        tasks = () if own.labelled == "all" else tasks[: own.labelled]
    videos = data.unlabelled_videos if own.unlabelled_videos is None else own.unlabelled_videos
    return Labels(tasks, videos, own.videos)


def _largest(data: Data, seed: int, line: Line | None, name: str = VIDEO_ACTION) -> Arm:
    """Return the largest arm of a line; of one on demos alone it has no videos. Without a line it has none
    where lines differ in kinds of videos: those of the demos' own store may not suffice.
    """
    videos = line.swept if line else not data.video_kinds
    return Arm(data.most_demos, data.highest_ratio if videos else 0.0, seed, name)


def settings_of(policy: PolicyChoice, line: Line) -> PolicySettings:
    """Return the values of a line's policy in place of its preset's: its own, then those of all lines."""
    return line.settings.over(policy.settings) if line.settings else policy.settings


def _sampler(policy: PolicyChoice, line: Line, suite: SuiteConfig) -> SamplerConfig:
    """Return how observations become actions in one of the package's own lines."""
    config = policy_config(line.preset or policy.preset, settings=settings_of(policy, line))
    return suite.sampler.applied(config.sampler_on(suite.rung))


NOTHING_TO_PLAY = (
    "this suite measures the action error on recordings and has no episodes to play; name another suite, or"
    " tasks"
)


class _WithSuite(BaseModel):
    """A sweep file of which only the suite is wanted."""

    suite: SuiteConfig


def load_suite(path: str | Path) -> SuiteConfig:
    """Return the suite of a sweep file, ignoring other fields; raise SweepError with all its mistakes."""
    raw = _read(path)
    _refuse_credentials(raw, str(path))
    try:
        suite = _WithSuite.model_validate(raw).suite
    except ValidationError as error:
        raise SweepError(str(path), [_sentence(_WithSuite, item) for item in error.errors()]) from None
    if suite.held_out is not None:
        raise SweepError(str(path), [f"suite.held_out: {NOTHING_TO_PLAY}"])
    return suite


def credential_problems(raw: Any) -> list[str]:
    """Return one sentence, without the credentials, per field of a sweep that holds some. raw: the sweep as
    read, or as `SweepConfig` dumps it.
    """
    return [
        f"{field}: it holds credentials, which everyone who sees its storage, MLflow or the cluster's jobs"
        " could read; leave them out and set them in the environment of the machines that need them:"
        f" {_variables(field)}"
        for field in fields_with_credentials(raw)
    ]


def _without_credentials(value: Any) -> Any:
    """Return parsed JSON with the credentials of its URIs left out."""
    if isinstance(value, dict):
        return {name: _without_credentials(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_credentials(part) for part in value]
    return strip_credentials(value) if isinstance(value, str) and credentials_in(value) else value


def _variables(field: str) -> str:
    """Return the environment variables that replace credentials in a field."""
    if field == "mlflow":
        return (
            "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; for a database"
            " PGPASSWORD or ~/.pgpass"
        )
    if field == "policy.weights":
        return (
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an instance role for s3://, HF_TOKEN for the hub"
        )
    if field == "storage" or field.startswith("data.episodes"):
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an instance role"
    return "AWS_*, HF_TOKEN, MLFLOW_TRACKING_TOKEN"


def _refuse_credentials(raw: dict[str, Any], where: str) -> None:
    if problems := credential_problems(raw):
        raise SweepError(where, problems)


def _read(path: str | Path) -> dict[str, Any]:
    where = str(path)
    try:
        with Path(path).open("rb") as file:
            raw = read_yaml(file.read(YAML_BYTES + 1).decode())
    except FileNotFoundError:
        raise SweepError(where, ["there is no such file"]) from None
    except OSError as error:
        raise SweepError(where, [f"cannot be read ({error.strerror})"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(where, [f"not readable as YAML: {_where_in_yaml(error)}"]) from None
    if not isinstance(raw, dict):
        raise SweepError(where, ["a sweep file is a mapping of fields; see jobs/README.md"])
    return raw


def _where_in_yaml(error: Exception) -> str:
    """Return the problem and its line and column, without the text of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        said = ", ".join(filter(None, (error.context, error.problem)))
        return f"{said}, line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def _override(raw: dict[str, Any], override: str, where: str) -> None:
    key, separator, value = override.partition("=")
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise SweepError(where, [f"--set {override}: {parent} has no fields"])
    if not separator or not last:
        raise SweepError(
            where, [f"--set {override}: write it as field=value, for example --set train.steps=200"]
        )
    try:
        place[last] = read_yaml(value)
    except yaml.YAMLError as error:
        raise SweepError(
            where,
            [
                f"--set {override}: not readable as YAML:"
                f" {getattr(error, 'problem', None) or type(error).__name__}"
            ],
        ) from None


def contradictions(sections: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence per pair of fields that contradict each other. sections: the valid fields of a
    `SweepConfig`, by name; others are not read.
    """
    data, suite, search, train, policy = (
        sections.get(name) for name in ("data", "suite", "search", "train", "policy")
    )
    if suite:
        yield from (f"suite.{problem}" for problem in suite.task_problems())
        yield from (f"suite.{problem}" for problem in suite.select_problems())
    if suite and (
        refused := [why for task in suite.tasks for shift in suite.shifts if (why := refusal(task, shift))]
    ):
        yield f"suite.shifts: {'; '.join(refused)}"
    optuna = bool(search and search.optuna)
    varied = {"demo_count": data.demo_count, "action_free_ratio": data.action_free_ratio} if data else {}
    ranges = [name for name, values in varied.items() if isinstance(values, Range)]
    if ranges and search and not optuna:
        yield (
            f"data.{ranges[0]}: a range asks for search: {{optuna: {{trials: 40}}}}; any other search needs a"
            " list of values"
        )
    baselines = policy.baselines if policy else ()
    if optuna and (len(sections.get("seeds", ())) > 1 or baselines):
        yield (
            "search.optuna: its arms are tried with one seed and without baselines; repeat the best of them"
            " in a grid"
        )
    if search and search.next:
        yield from _contradictions_of_next(search.next, data, suite, policy)
    if policy and suite:
        yield from _contradictions_of_settings(policy, suite)
    if policy and policy.lines:
        yield from _contradictions_of_lines(policy, train, optuna)
    if data:
        yield from _contradictions_of_labels(data, policy.lines if policy else ())
        yield from _contradictions_of_kinds(data, policy.lines if policy else (), train)
    if train and train.match == "epochs" and ((search and (search.asha or search.median)) or optuna):
        yield (
            "train.match: a search compares arms after the same number of steps, and epochs gives arms with"
            " fewer demos fewer; write steps, or search the grid"
        )
    if train and train.match == "epochs" and suite and suite.against:
        yield (
            "suite.decide.against: checkpoints are compared after the same number of steps, and train.match"
            " epochs gives arms with fewer demos fewer; write {threshold: 0.8}, or match steps"
        )
    against = suite.against if suite else ""
    if against and search and search.next:
        yield (
            "suite.decide.against: search.next may never train that arm; write {threshold: 0.8}, or search a"
            " grid"
        )
    elif against and optuna:
        yield (
            "suite.decide.against: Optuna may never propose that arm; write {threshold: 0.8}, or search a"
            " grid"
        )
    elif against and data and policy and not ranges and "seeds" in sections:
        grid = _grid(data, sections["seeds"], lines_of(policy))
        if not any(reference_of(arm, against, grid) for arm in grid):
            named = ", ".join(sorted(arm.name for arm in grid))
            yield f"suite.decide.against: no arm can be compared with {against}; the arms are {named}"
    one_ratio = data is None or (
        isinstance(data.action_free_ratio, tuple) and len(data.action_free_ratio) == 1
    )
    if train and train.videos == "sweep" and (train.mode != "two_stage" or not one_ratio):
        yield (
            "train.videos: sweep asks for train.mode two_stage and for one data.action_free_ratio: all arms"
            " see the same videos"
        )


def _contradictions_of_next(
    search: Next, data: Data | None, suite: SuiteConfig | None, policy: PolicyChoice | None
) -> Iterator[str]:
    """Yield what contradicts `search.next`."""
    if data and isinstance(data.demo_count, tuple) and len(data.demo_count) < NEXT_COUNTS:
        yield f"data.demo_count: search.next forecasts from {NEXT_COUNTS} counts or more; add to the list"
    ratios = data.action_free_ratio if data else ()
    if search.target == "equivalence" and isinstance(ratios, tuple) and data and len(ratios) < 2:
        yield (
            "search.next.target: equivalence takes two ratios, without and with action-free video; write"
            " data.action_free_ratio: [0, 1]"
        )
    if suite and suite.held_out is not None:
        yield "search.next: it forecasts success rates, and suite.held_out measures none; play episodes"
    if policy and (policy.lines or policy.baselines):
        yield (
            "search.next: its arms are those of one policy; leave policy.lines and policy.baselines out, and"
            " list them in a sweep of their own"
        )


def _grid(data: Data, seeds: tuple[int, ...], lines: Iterable[Line]) -> list[Arm]:
    """Return every arm of these lines. data: with lists, no ranges."""
    assert isinstance(data.demo_count, tuple)
    assert isinstance(data.action_free_ratio, tuple)
    swept, demos_only = (
        tuple(line.name for line in lines if line.swept is wanted) for wanted in (True, False)
    )
    return expand_grid(data.demo_count, data.action_free_ratio, seeds, demos_only, swept)


def _contradictions_of_settings(policy: PolicyChoice, suite: SuiteConfig) -> Iterator[str]:
    """Yield what contradicts a preset, or the chunk that a policy computes."""
    for number, line in enumerate(lines_of(policy)):
        if not line.own:
            continue
        where = f"policy.lines.{number}.settings" if line.settings else "policy.settings"
        try:
            config = policy_config(line.preset or policy.preset, settings=settings_of(policy, line))
        except ValueError as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            yield f"{where}: {first.removeprefix('Value error, ')}"
            continue
        if (execute := _sampler(policy, line, suite).execute) > config.clip.horizon:
            yield (
                f"suite.sampler.execute: {execute} actions, and a chunk of {line.name} has"
                f" {config.clip.horizon}; write fewer, or a longer policy.settings.horizon"
            )


def _contradictions_of_lines(policy: PolicyChoice, train: Train | None, optuna: bool) -> Iterator[str]:
    """Yield what contradicts `policy.lines`."""
    if policy.baselines:
        yield f"policy.baselines: {DIFFUSION_POLICY} is one of policy.lines where there are any; leave it out"
    if optuna:
        yield (
            "search.optuna: its arms are those of one policy; leave policy.lines out, and repeat the best of"
            " them in a grid"
        )
    for number, line in enumerate(policy.lines if train else ()):
        try:
            assert train
            Train.model_validate(train.model_dump() | dict(line.train))
        except ValidationError as error:
            yield from (f"policy.lines.{number}.train.{_sentence(Train, item)}" for item in error.errors())


def _contradictions_of_labels(data: Data, lines: Sequence[Line]) -> Iterator[str]:
    """Yield what contradicts `data.labelled_tasks`."""
    named = len(data.labelled_tasks)
    if data.unlabelled_videos is not None and not named:
        yield (
            "data.unlabelled_videos: every task is labelled; name the labelled ones in data.labelled_tasks,"
            " or leave the field out"
        )
    for number, line in enumerate(lines):
        where, own = f"policy.lines.{number}.data", line.data or LineData()
        if isinstance(own.labelled, int) and own.labelled > named:
            yield (
                f"{where}.labelled: {own.labelled} tasks, and data.labelled_tasks names {named}; name as many"
                " there, the first ones first"
            )
        elif own.unlabelled_videos is not None and not labels_of(data, line).tasks:
            yield f"{where}.unlabelled_videos: every task of {line.name} is labelled; leave the field out"


def _contradictions_of_kinds(data: Data, lines: Sequence[Line], train: Train | None) -> Iterator[str]:
    """Yield what contradicts the kinds of videos: names of `data.episodes`, and the lines that name them."""
    kinds, used = data.video_kinds, set[str]()
    for number, line in enumerate(lines):
        kind = line.data.videos if line.data else ""
        used.add(kind)
        if not kind or kind in kinds:
            continue
        close = difflib.get_close_matches(kind, kinds, 1)
        known = f"there are {', '.join(kinds)}" if kinds else "give parts of stores a name, with videos alone"
        yield (
            f"policy.lines.{number}.data.videos: no part of data.episodes is named {kind}; "
            + (f"did you mean {close[0]}?" if close else known)
        )
    if not kinds:
        return
    if unused := [kind for kind in kinds if kind not in used]:
        yield (
            f"data.episodes: no line learns from {', '.join(unused)}; write data: {{videos: {unused[0]}}} on"
            " one of policy.lines, or leave the name out so that every line does"
        )
    if data.labelled_tasks:
        yield (
            "data.labelled_tasks: lines differ in videos either by task or by the name of a part of"
            " data.episodes; leave one of them out"
        )
    if train and train.videos == "sweep":
        yield (
            "train.videos: sweep shows every arm of a line the videos of its largest, so that no arm's"
            " demonstrations have videos of their own; write arm where parts of data.episodes have names"
        )


def _mistakes(model: type[SweepConfig], raw: dict[str, Any], error: ValidationError) -> list[str]:
    """Every mistake in a sweep file: those of single fields, and contradictions between the fields that are
    right.
    """
    errors, raw = error.errors(), with_recipes(raw)
    sentences = [sentence for item in _telling(errors) for sentence in _sentence(model, item).split("\n")]
    for sentence in sentences[:]:  # a misspelt field is not missing too
        place, misspelt, rest = sentence.partition(": unknown field; did you mean ")
        lacking = f"{'.'.join([*place.split('.')[:-1], rest.removesuffix('?')])}: missing"
        if misspelt and lacking in sentences:
            sentences.remove(lacking)
    wrong = {item["loc"][0] for item in errors if item["loc"]}
    if not wrong:  # contradictions alone
        return sentences
    valid = dict[str, Any]()
    for name, field in model.model_fields.items():
        if name in wrong or (name not in raw and field.is_required()):
            continue
        valid[name] = (
            TypeAdapter[Any](cast(Any, field.annotation)).validate_python(raw[name])
            if name in raw
            else field.get_default()
        )
    return [*sentences, *contradictions(valid)]


def _telling(errors: list[Any]) -> list[Any]:
    """Return pydantic's errors without those that only follow from others: a list is too short because its
    values are wrong.
    """
    return [
        one
        for one in errors
        if one["type"] != "too_short"
        or not any(other["loc"][:-1] == one["loc"] and other is not one for other in errors)
    ]


_WRITE = {
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "int_from_float": "write a whole number",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "string_type": "write text",
    "tuple_type": "write a list, such as [1, 2]",
}
"""What to write instead, by pydantic's type of error, where its own words are those of Python."""
_CHARACTERS = {
    r"^[a-z0-9][a-z0-9._-]*$": "write lower-case letters, digits, `.`, `_` and `-`, and begin with a"
    " letter or a digit",
    r"^[A-Za-z0-9_]+$": "write letters, digits and `_`",
}
"""The patterns of the schema in words."""


def _sentence(model: type[BaseModel], error: Any) -> str:
    """Return the message for one pydantic error: field and problem."""
    # which of the two forms a field has
    places = [
        part
        for part in error["loc"]
        if part not in ("list", "range", "one", "several", "switch", "strengths")
    ]
    location = ".".join(str(part) for part in places)
    if error["type"] == "extra_forbidden":
        for part in (place for place in places[:-1] if isinstance(place, str)):
            model = next(sections_in(model.model_fields[part].annotation))
        close = difflib.get_close_matches(str(places[-1]), model.model_fields, 1)
        return f"{location}: unknown field" + (
            f"; did you mean {close[0]}?"
            if close
            else f"; the fields here are {', '.join(model.model_fields)}"
        )
    if error["type"] == "missing":
        return f"{location}: missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        message = _CHARACTERS.get(error["ctx"]["pattern"], message)
    elif error["type"] == "model_type":
        section = next(
            (one for one in _sections_below(model) if one.__name__ == error["ctx"]["class_name"]), None
        )
        fields = f" ({', '.join(section.model_fields)})" if section else ""
        message = f"write a mapping of its fields{fields}"
    message = _WRITE.get(error["type"], message)
    if not location:  # about several fields at once; the message names them
        return str(message)
    if error["type"] == "value_error":
        return f"{location}: {message}"
    return f"{location}: {message[0].lower()}{message[1:]}, not {error['input']!r}"


def _sections_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the sections of a model and of its sections."""
    for field in model.model_fields.values():
        for section in sections_in(field.annotation):
            yield section
            yield from _sections_below(section)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field may hold, alone or as one of several forms."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for form in typing.get_args(annotation):
        yield from sections_in(form)


def manifest_of(data: Data, version: int | None = None, pinned: str = "") -> Manifest:
    """Return the manifest of a sweep's episodes: of its store, or of the parts of several.

    version, pinned: as for `store_problems`. Raises EpisodeError, StorageError, or MergeError with one
    sentence per mistake.
    """
    if isinstance(data.episodes, str):
        return load_manifest(open_storage(data.episodes), version)
    if pinned:
        return load_manifest(open_storage(pinned), 1)
    return merge([entry.part() for entry in data.episodes])


def store_problems(
    data: Data,
    suite: SuiteConfig,
    version: int | None = None,
    quarantined: Collection[str] = (),
    evaluation: Collection[str] = (),
    pinned: str = "",
    lines: Iterable[Line] = (),
) -> list[str]:
    """Return all problems of the episode store that would stop a sweep: no store, a task without
    demonstrations, too few episodes.

    version: version of the store; None: the newest. quarantined: episodes that no arm reads. evaluation:
    episodes that an earlier run held out; empty: they are chosen here, if the suite holds any out. pinned:
    URI of the merged store of an earlier run (`merged_store.py`); empty: none. lines: those with labels of
    their own count.
    """
    tasks = suite.tasks
    try:
        manifest = manifest_of(data, version, pinned)
    except MergeError as error:
        return [f"data.episodes.{problem}" for problem in error.problems]
    except (EpisodeError, StorageError) as error:
        return [f"data.episodes: {error}"]
    if problems := suite.store_problems(manifest.contract):
        return problems
    where = ", ".join(data.stores)
    if told := [
        f"on {task} here. {'; '.join(different)}"
        for task in tasks
        if (different := unfit(suite.contract_of(manifest.contract), task))
    ]:
        return [f"data.episodes: a policy trained on {where} could not be scored {told[0]}"]
    demonstrated = {task for task, rows in manifest.tasks.items() if manifest.labelled[rows].any()}
    problems = [
        f"suite.tasks: the store has no demonstrations of {task}; it has {', '.join(sorted(demonstrated))}"
        for task in tasks
        if task not in (manifest.tasks if data.labelled_tasks else demonstrated)
    ]
    try:
        damaged = frozenset(quarantined)
        apart = frozenset(evaluation or evaluation_episodes(manifest, suite.held_out, damaged))
        needed = ((_largest(data, 0, line), labels_of(data, line)) for line in (None, *lines))
        for largest, labels in dict.fromkeys(needed):
            select_episodes(manifest, largest, damaged, labels, apart)
    except SubsetError as error:
        problems.append(f"data: the largest arm does not fit. {error}")
    return problems


def _store_problems_of(raw: dict[str, Any]) -> list[str]:
    """Return the problems of the episode store that can be found although the file has mistakes elsewhere."""
    try:
        data = Data.model_validate(raw.get("data"))
        suite = SuiteConfig.model_validate(raw.get("suite"))
    except ValidationError:
        return []
    return store_problems(data, suite)
