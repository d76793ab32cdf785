"""The plan of a sweep: what it would do and read, counted before it runs."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.policy_manifest import ManifestError, load
from orchestrator.config.recipes import chosen_fields
from orchestrator.config.schema import Optuna
from orchestrator.config.sweep_config import SweepConfig, SweepError, labels_of, store_problems
from orchestrator.cost import hours
from orchestrator.data.clip_stream import memory_bound
from orchestrator.data.latent_cache import latents_beside
from orchestrator.data.manifest import Manifest, MergedPart
from orchestrator.data.merged_store import weights_of
from orchestrator.planning.power_table import PowerTable
from orchestrator.storage.base import open_storage
from policy.presets import PRESETS, RECIPES
from sim_workers.envs.registry import not_lean


@dataclass(frozen=True)
class Plan:
    """Counts of a sweep: arms x checkpoints x rollouts, and the data that they read."""

    arms: int
    checkpoints: int
    scored: int
    """Number of checkpoints that are scored (`suite.every`)."""
    shifts: int
    rollouts: int
    decided: bool
    """Whether a rule (`suite.decide`) may end scores early, so that there are fewer rollouts."""
    control_steps: int
    """Upper bound, for rollouts that never end early."""
    video_models: int
    """Number of stage-1 trainings, each shared by the arms with the same episodes; 0 without stage 1."""
    clips: int
    """Number of training clips over all arms and video models; 0 if training ends by time."""
    bytes_per_epoch: int
    """Bytes that an epoch of the largest arm reads from the store."""
    stream_bytes: int
    """Maximum memory in bytes of the clip stream of one training worker."""
    store_episodes: int
    store_bytes: int
    notes: tuple[str, ...] = ()
    """What to know of external lines and of latents, one sentence each."""
    recipes: tuple[str, ...] = ()
    """How the presets with a recipe of their own are trained, one phrase each."""
    control: tuple[str, ...] = ()
    """One sentence per reason why simulators take robosuite's own control steps; empty: the lean ones."""
    parts: tuple[MergedPart, ...] = ()
    """Parts of several stores, with what their filters leave; empty for a whole store."""
    held_out: int = 0
    """Number of recorded episodes on which every checkpoint's action error is measured; 0 if it plays
    episodes.
    """
    held_out_steps: int = 0
    """Number of their recorded actions."""
    seconds: int = 0
    """Budget of time of every arm's training, of all its GPUs or processes; 0 if training ends at a step."""
    labels: tuple[str, ...] = ()
    """Labelled tasks and videos of the others, one phrase per line; empty where all tasks are labelled."""
    power: PowerTable | None = None
    """Differences that the sweep can show; None if its number of episodes is not fixed or it plays none."""

    @property
    def _scored(self) -> str:
        return "every one" if self.scored == self.checkpoints else f"{self.scored}"

    def __str__(self) -> str:
        lines = (
            (
                "arms",
                f"{self.arms}"
                + (f", on {self.video_models} video models trained first" if self.video_models else ""),
            ),
            (
                "checkpoints",
                f"{self.checkpoints}, {self._scored} scored"
                + (f", each arm's last one under {self.shifts} shifts too" if self.shifts else ""),
            ),
            (
                ("rollouts", "none; the action error is measured on recordings")
                if self.held_out
                else (
                    "rollouts",
                    f"{'at most ' * self.decided}{self.rollouts}, at most {self.control_steps:,} control"
                    " steps",
                )
            ),
            *(
                [
                    (
                        "held out",
                        f"{self.held_out} episodes of {self.held_out_steps:,} control steps, on which no arm"
                        " trains and every checkpoint is measured",
                    )
                ]
                if self.held_out
                else []
            ),
            (
                "training",
                (
                    f"{self._training()}; the largest arm reads {self.bytes_per_epoch / 2**20:.1f} MiB per"
                    " epoch"
                ),
            ),
            (
                "memory",
                (
                    f"at most {self.stream_bytes / 2**20:.0f} MiB per training worker for prefetched clips,"
                    " in addition to the model"
                ),
            ),
            *(("recipe", told) for told in self.recipes),
            *(("labels", told) for told in self.labels),
            ("episode store", f"{self.store_episodes} episodes, {self.store_bytes / 2**20:.1f} MiB"),
            *(("control step", f"robosuite's own, several times slower: {why}") for why in self.control),
            *(
                (
                    f"  {part.name}",
                    f"{part.episodes} of {part.of} episodes of {part.store}, version {part.version}"
                    + (f", for lines of videos: {part.video_kind}" if part.video_kind else ""),
                )
                for part in self.parts
            ),
        )
        shown = self.power.lines() if self.power else []
        table = [("" if number else "power", line) for number, line in enumerate(shown)]
        noted = (*lines, *table, *(("note", note) for note in self.notes))
        return "\n".join(f"{name:<14} {value}".rstrip() for name, value in noted)

    def _training(self) -> str:
        if not self.seconds:
            return f"{self.clips:,} clips"
        whole = hours(self.arms * self.seconds)
        return f"{self.seconds:,} s per arm, {whole} h in all, of GPUs, or of training processes without any"


def planned_arms(sweep: SweepConfig) -> list[Arm]:
    """Return all arms, of a next-arm search those that it chooses from. Optuna proposes its arms later: until
    then each trial counts as the largest arm.
    """
    trials = (sweep.search.optuna or Optuna(trials=1)).trials
    return sweep.possible_arms() or [sweep.largest()] * trials


@dataclass(frozen=True)
class StageOne:
    """A training of a video model, shared by the arms of a line with the same episodes and seed."""

    line: str
    """Name of the line."""
    seed: int
    steps: int
    episodes: tuple[str, ...]


def planned_videos(
    sweep: SweepConfig, manifest: Manifest, quarantined: Set[str], evaluation: Set[str] = frozenset()
) -> list[StageOne]:
    """Return every stage-1 training, in the order of the arms. evaluation: episodes held out from every
    arm.
    """
    trained: dict[StageOne, None] = {}
    for arm in planned_arms(sweep):
        train = sweep.train_of(arm)
        if train.mode != "two_stage" or not sweep.line(arm).imagines:
            continue
        videos = sweep.largest(arm.seed, arm.kind) if train.videos == "sweep" else arm
        subset = sweep.select(manifest, videos, quarantined, evaluation)
        trained[StageOne(arm.kind, arm.seed, train.video_steps or train.steps, subset.episodes)] = None
    return [*trained]


def make_plan(sweep: SweepConfig) -> Plan:
    """Count what the sweep would do with the data that its last run pinned, the newest before its first run.

    Raises SweepError with every problem if it cannot run, and StorageError if its storage cannot be read.
    """
    pinned = PinnedData.read(sweep)
    quarantined = pinned.quarantined.keys()
    if problems := store_problems(
        sweep.data,
        sweep.suite,
        pinned.version,
        quarantined,
        pinned.held_out,
        pinned.merged,
        sweep.lines,
    ):
        raise SweepError(sweep.name, problems)
    manifest = pinned.manifest(sweep)
    own = [line for line in sweep.lines if line.own]
    names = dict.fromkeys(sweep.preset_of(line) for line in own)
    if problems := [problem for name in names if (problem := _misfit(name, manifest))]:
        raise SweepError(sweep.name, problems)
    arms = planned_arms(sweep)
    evaluation = pinned.evaluation(sweep, manifest)
    most = [sweep.largest(line=line.name) for line in sweep.lines]
    largest = max(
        (sweep.select(manifest, arm, quarantined, evaluation) for arm in most),
        key=lambda subset: len(subset.episodes),
    )
    entries = manifest.select((*largest.demos, *largest.action_free))
    batch_size = sweep.train.batch_size // sweep.train.workers
    video_models = planned_videos(sweep, manifest, quarantined, evaluation)
    seconds = sweep.train.seconds or 0
    steps = sum(sweep.train_of(arm).steps for arm in arms) + sum(video.steps for video in video_models)
    checkpoints = sum(len(sweep.checkpoint_steps(arm)) for arm in arms)
    suite, contract = sweep.to_suite(), sweep.suite.contract_of(manifest.contract)
    scored = sum(len(sweep.scored_steps(arm)) for arm in arms)
    reports = len(arms) * sweep.suite.reports + len(sweep.suite.references)
    rollouts = scored * sweep.suite.deciding + reports * sweep.suite.listed
    lists = scored * (sweep.suite.select or suite.episodes) + reports * suite.episodes
    return Plan(
        arms=len(arms),
        checkpoints=checkpoints,
        scored=scored,
        shifts=len(sweep.suite.shifts),
        rollouts=rollouts,
        decided=sweep.suite.decide is not None,
        control_steps=lists * sum(suite.rules_of(task).horizon for task in suite.tasks),
        video_models=len(video_models),
        clips=steps * sweep.train.batch_size,
        bytes_per_epoch=sum(entry.nbytes for entry in entries),
        stream_bytes=max(
            (
                memory_bound(
                    contract,
                    shape,
                    entries,
                    batch_size,
                    bool(largest.action_free),
                    max(1, len(weights_of(manifest))),
                )
                for shape in dict.fromkeys(sweep.config_of(line).clip for line in own)
            ),
            default=0,
        ),
        store_episodes=len(manifest),
        store_bytes=sum(manifest.column("nbytes").to_pylist()),
        notes=(*_notes(sweep), *_unread_latents(sweep, pinned.place(sweep, manifest), manifest)),
        recipes=tuple(recipes_of(sweep)),
        labels=tuple(labels_in_words(sweep, len(set(manifest.tasks) - set(manifest.video_tasks)))),
        control=tuple(dict.fromkeys(filter(None, (not_lean(contract, task) for task in suite.tasks)))),
        parts=manifest.parts,
        held_out=len(evaluation),
        seconds=seconds,
        held_out_steps=sum(entry.length for entry in manifest.select(sorted(evaluation), with_stats=False)),
        power=PowerTable.of(sweep),
    )


def recipes_of(sweep: SweepConfig) -> Iterator[str]:
    """Yield one phrase per preset with a recipe of its own, which a sweep file need not spell out."""
    told = dict[str, None]()
    for line in (line for line in sweep.lines if line.own):
        train, preset = sweep.line_train(line), sweep.preset_of(line)
        if not (fields := RECIPES[preset].model_fields_set):
            continue
        values = ", ".join(
            f"{name} {_value(value)}" for name, value in train.model_dump(include=fields).items()
        )
        told[f"{preset}: {values}"] = None
    yield from told


def labels_in_words(sweep: SweepConfig, tasks: int) -> Iterator[str]:
    """Yield one phrase per line on what it learns from; none if all tasks of every line are labelled.

    tasks: number of the store's tasks.
    """
    own = {line.name: labels_of(sweep.data, line) for line in sweep.lines}
    if not any(labels.tasks for labels in own.values()):
        return
    for line in sweep.lines:
        labels = own[line.name]
        videos = "as many videos as demos" if labels.videos is None else f"{labels.videos} videos"
        if not line.swept or labels.videos == 0:
            videos = "no videos"
        others = f", {videos} of each of the others" if labels.tasks else ""
        yield f"{line.name}: {len(labels.tasks) or tasks} of {tasks} tasks{others}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_value(part)}" for name, part in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_value, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _misfit(preset: str, manifest: Manifest) -> str:
    """Return why a preset cannot learn from the store's pictures; empty if it can."""
    video = PRESETS[preset].video
    assert video
    unit = video.patch * 2 ** (len(video.block_out_channels) - 1)
    if not any(side % unit for side in manifest.contract.image_size):
        return ""
    size = "x".join(map(str, manifest.contract.image_size))
    return (
        f"policy.preset: {preset} needs pictures whose sides are multiples of {unit}; the store's are {size}"
    )


def _unread_latents(sweep: SweepConfig, episodes: str, manifest: Manifest) -> Iterator[str]:
    """Yield a sentence if the stores have latents that colour jitter keeps the sweep from reading.

    episodes: URI of the store that workers read.
    """
    jittered = [
        line.name
        for line in sweep.lines
        if line.imagines
        and (video := sweep.config_of(line).video)
        and video.latents == "vae"
        and sweep.line_train(line).color_jitter
    ]
    if jittered and (places := latents_beside(open_storage(episodes), manifest)):
        yield (
            f"{', '.join(jittered)}: the latents beside {', '.join(places)} are not read, since"
            " train.color_jitter changes pictures before they are encoded; write train.color_jitter: false to"
            " read them"
        )


def _notes(sweep: SweepConfig) -> Iterator[str]:
    """Yield what to know of a next-arm search and of external lines. Raises SweepError for a folder with
    mistakes.
    """
    if sweep.search.next:
        yield (
            "search.next chooses from these arms and trains those that are worth their cost, so this is the"
            " most it may take"
        )
    shared = {"match", "videos", "workers", "seconds"}
    chosen = [name for name in chosen_fields(sweep.policy.preset, sweep.train) if name not in shared]
    for line in (line for line in sweep.lines if not line.own):
        try:
            manifest = load(line.policy).manifest
        except ManifestError as error:
            raise SweepError(sweep.name, error.problems) from None
        if problems := manifest.misunderstandings(sweep.train, sweep.data):
            raise SweepError(sweep.name, [f"policy.lines: {line.name}: {one}" for one in problems])
        if not manifest.tested:
            yield f"{line.name}: the authors of its policy.yaml have not run it"
        if ignored := manifest.ignored(chosen):
            yield f"{line.name} does not follow {', '.join(f'train.{name}' for name in ignored)}"
