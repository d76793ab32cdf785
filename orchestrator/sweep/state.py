"""State of a sweep in its storage: its arms, their training progress and their scores.

identity.json                             the storage's random id, orchestrator/storage/identity.py
sweeps/<name>.json                        the resolved sweep, its pinned data version, its quarantined
                                          and held-out episodes, and the device class, package versions and
                                          weights of the run that wrote it last
arms/<arm id>/step_000100/                checkpoints, written by Ray Train
frozen/<sha256>                           weights of checkpoints that their training left as they were,
                                          policy/checkpoint_files.py
checkpoints/<arm id>/step_000100.json     note of a complete checkpoint: its losses and fingerprint, and
                                          whether it was removed since, orchestrator/sweep/retention.py
outcomes/<checkpoint>/<protocol>          the ledger, orchestrator/evaluation/outcome_ledger.py
action_errors/<checkpoint>/<protocol>     action errors, orchestrator/evaluation/action_error_ledger.py
video/<checkpoint>/<digest>.json          score of the checkpoint's generated video,
                                          orchestrator/evaluation/video_score.py
decisions/<name>/<search>/                decisions of a search, orchestrator/sweep/decisions.py
keys/<fingerprint>.json                   parts of the keys, orchestrator/fingerprints.py
failures/<name>/<arm id>.json             permanent failure of an arm's training
costs/<name>/<run>.json                   cost of each run of the sweep, orchestrator/cost.py
live/<name>.json                          progress of the current run
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from orchestrator.checkpoints.reader import is_complete
from orchestrator.checkpoints.record import CheckpointRecord, note_damaged, read_records, write_record
from orchestrator.code_fingerprint import run_files
from orchestrator.config.arms import Arm, reference_of
from orchestrator.config.lines import Line
from orchestrator.config.pinned_data import PinnedData, pinned_facts
from orchestrator.config.schema import SuiteConfig
from orchestrator.config.sweep_config import NOTHING_TO_PLAY, SweepConfig, SweepError
from orchestrator.cost import CostLedger
from orchestrator.data.episode_store import check_all, latest_version
from orchestrator.data.manifest import Manifest, seen_by
from orchestrator.data.merged_store import merged_uri, publish_merged
from orchestrator.data.subset import Subset, SubsetError, evaluation_episodes
from orchestrator.evaluation.action_error_ledger import ActionErrorLedger
from orchestrator.evaluation.action_error_score import ActionErrorBenchmark, ActionErrorScore
from orchestrator.evaluation.held_out_clips import HeldOut
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.scores import Score, protocol_key, score_so_far
from orchestrator.evaluation.sequential_rule import StoppingRule
from orchestrator.evaluation.video_score import VideoBenchmark
from orchestrator.external.job import ExternalJob
from orchestrator.fingerprints import Key, stored_like
from orchestrator.provenance import (
    ACTING_PACKAGES,
    COMMIT_OF_HUB,
    TRAINING_PACKAGES,
    digest,
    package_versions,
    same_weights,
    weights_label,
)
from orchestrator.redaction import redact, redacted_in, strip_credentials
from orchestrator.storage.base import Storage, open_storage
from orchestrator.storage.identity import claim_identity, identity_of, sweep_names
from orchestrator.storage.notes import read_json_objects
from orchestrator.sweep.decisions import Decisions
from orchestrator.sweep.external_lines import ExternalLine, read_external_lines, read_learner_code
from orchestrator.sweep.status import ArmStatus, SweepStatus
from orchestrator.tracking.mlflow_writer import tracking_uri
from orchestrator.training.loop import STAGE_ONE, TrainJob
from orchestrator.training.train_events import Reported
from policy.config import ClipShape, SamplerConfig
from policy.interface import Contract
from sim_workers.checkout import file_hashes
from sim_workers.rollout.episode import Outcome


def versions_here() -> dict[str, str]:
    """Return the installed version of every package that affects numerical results."""
    return package_versions(tuple(sorted({*ACTING_PACKAGES, *TRAINING_PACKAGES})))


@dataclass(frozen=True)
class SweepState:
    """Sweep pinned to one version of its data, shared by `run`, `status` and `curve`."""

    sweep: SweepConfig
    storage: Storage
    manifest: Manifest
    version: int
    quarantined: dict[str, str]
    """Damaged episodes that no arm reads: episode id -> defect."""
    store: str = ""
    """Identity of the storage, by which MLflow distinguishes sweeps of one name; empty if no sweep was pinned
    since storages have identities.
    """
    device: str = ""
    """Device class that checkpoints act on, as the last run found it (`ray_runtime.acting_device`); empty
    before the first run.
    """
    packages: Mapping[str, str] = field(default_factory=versions_here)
    """Versions of the packages that affect numerical results."""
    weights: str = ""
    """`weights_label` of the initial weights of the sweep's video models."""
    line_weights: Mapping[str, str] = field(default_factory=dict)
    """`weights_label` of the initial weights of lines that start from others, by source."""
    external: Mapping[str, ExternalLine] = field(default_factory=dict)
    """External lines by name."""
    learner_code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Code of the packages that offer lines' policies by entry points (`code_fingerprint.learner_code`), by
    name of the line.
    """
    stored: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints under which an earlier version stored results, by what they would be today; empty for a
    run, which goes by today's code.
    """
    episodes: str = ""
    """URI of the store that workers read: the sweep's, or a merged one in its storage."""
    held_out: tuple[str, ...] = ()
    """Episodes on which the action error of every checkpoint is measured and that no arm trains on; empty if
    the sweep plays episodes.
    """
    _subsets: dict[Arm, Subset] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Episodes selected so far, by arm."""
    _trainings: dict[Arm, str] = field(default_factory=dict, init=False, compare=False, repr=False)
    """`training_of` so far, by arm."""
    _video_tests: dict[tuple[ClipShape, SamplerConfig], VideoBenchmark | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """`video_test` so far, by clip and sampler."""

    @classmethod
    def open(cls, sweep: SweepConfig, pin: bool = False, here: bool = False) -> "SweepState":
        """Return the sweep with the facts pinned in its storage; `pin`: write them.

        The first run (`pin`) pins the newest data version; later runs keep it. Package versions are those of
        the last run, on whichever machine this process runs; with `pin` or `here`, those installed on this
        machine. Raises SweepError if `pin` finds arms trained beyond `train.steps`.
        """
        storage = open_storage(sweep.storage)
        before = pinned_facts(storage, sweep.name)
        data, version = PinnedData.of(sweep, before), 1
        if isinstance(sweep.data.episodes, str):
            version = data.version or latest_version(open_storage(sweep.data.episodes))
            data = replace(data, version=version)
        packages = versions_here() if pin or here else {**versions_here(), **before.get("packages", {})}
        weights, known = weights_label(sweep.weights, ask=pin), before.get("weights", {})
        if known.get("source") == sweep.weights:
            weights = same_weights(known["label"], weights)
        line_weights = {
            source: weights_label(source, ask=pin)
            for source in sorted({sweep.source_of(line) for line in sweep.lines if line.own})
            if source != sweep.weights
        }
        for source, label in before.get("line_weights", {}).items():
            if source in line_weights:
                line_weights[source] = same_weights(label, line_weights[source])
        device, manifest = before.get("device", ""), data.manifest(sweep)
        if pin and manifest.parts:
            for kind in dict.fromkeys(["", *sweep.data.video_kinds]):
                publish_merged(storage, seen_by(manifest, kind))
            publish_merged(storage, manifest)
        store = claim_identity(storage) if pin else identity_of(storage)
        try:
            held_out = data.evaluation(sweep, manifest)
        except SubsetError as error:
            raise SweepError(sweep.name, [f"data: {error}"]) from None
        state = cls(
            sweep,
            storage,
            manifest,
            version,
            data.quarantined,
            store,
            device,
            packages,
            weights,
            line_weights,
            read_external_lines(sweep, storage, before.get("external", {}), pin, here),
            read_learner_code(sweep, before.get("learner_code", {}), pin or here),
            held_out=tuple(sorted(held_out)),
            episodes=data.place(sweep, manifest),
        )
        if pin:
            state._refuse_shorter(before.get("sweep", {}))
            state.pin()
        return state

    def _refuse_shorter(self, before: Mapping[str, Any]) -> None:
        """Raise SweepError if an arm was trained beyond its last step by this sweep, or beyond it with no
        checkpoint at that step.

        before: the resolved sweep of the last run, empty if there was none. MLflow keeps an arm's newest
        scores, so the curve would show those.
        """
        fix, train = "give the sweep another name", self.sweep.train
        was, demos = before.get("train", {}), before.get("data", {}).get("demo_count")
        alike = was.get("match", "steps") == train.match and (
            train.match != "epochs" or demos == self.sweep.data.model_dump(mode="json")["demo_count"]
        )
        field = "seconds" if train.timed else "steps"
        shorter_before = not was or (alike and was[field] <= train.end)
        for arm_id, arm in self.arms().items():
            steps = self.sweep.train_of(arm).end
            records = read_records(self.storage, arm_id)
            trained = sorted(step for step, record in records.items() if not record.removed)
            if (last := max(trained, default=0)) <= steps or (steps in trained and shorter_before):
                continue
            if steps not in trained and train.match != "epochs":
                fix = f"set train.{field} to {', '.join(map(str, trained))} or more"
            raise SweepError(
                self.sweep.name,
                [
                    f"train.{field}: {arm.name} was trained on to"
                    f" {f'{last} s' if train.timed else f'step {last}'}; {fix}"
                ],
            )

    def pin(self) -> None:
        """Write the pinned facts to the storage."""
        kept = {
            "sweep": self.sweep.model_dump(mode="json"),
            "version": self.version,
            "quarantined": self.quarantined,
            "held_out": self.held_out,
            **({"merged": self.episodes.removeprefix(f"{self.storage.uri}/")} if self.manifest.parts else {}),
            "device": self.device,
            "packages": dict(self.packages),
            "weights": {
                "source": strip_credentials(self.sweep.weights),
                "label": strip_credentials(self.weights),
            },
        }
        if self.line_weights:
            kept["line_weights"] = {
                strip_credentials(source): strip_credentials(label)
                for source, label in self.line_weights.items()
            }
        if self.external:
            kept["external"] = {name: line.pinned() for name, line in self.external.items()}
        if self.learner_code:
            kept["learner_code"] = {name: dict(code) for name, code in self.learner_code.items()}
        self.storage.put(f"sweeps/{self.sweep.name}.json", json.dumps(kept, indent=1).encode())

    def without_damaged(self, on_progress: Callable[[int, int], None]) -> "SweepState":
        """Return the sweep after validating every episode its arms read; damaged ones are quarantined and
        replaced until all are intact.

        `on_progress` receives (episodes read, episodes to read). Raises SweepError if too few intact episodes
        are left.
        """
        state, whole = self, set[str]()
        while True:
            subsets = [state.subset(arm) for arm in state.sweep.possible_arms() or [state.sweep.largest()]]
            chosen = {episode for subset in subsets for episode in subset.episodes}.union(state.held_out)
            todo = state.manifest.select(sorted(chosen - whole))
            damaged = {}
            for done, (entry, problem) in enumerate(check_all(open_storage(state.episodes), todo), 1):
                on_progress(done, len(todo))
                if problem:
                    damaged[entry.episode_id] = redact(problem)
            whole |= chosen - set(damaged)
            if not damaged:
                return state
            state = state._quarantine(damaged)
            state.pin()

    def _quarantine(self, damaged: dict[str, str]) -> "SweepState":
        """Return the sweep without these episodes. If a held-out one is among them, the next in order takes
        its place.
        """
        quarantined = self.quarantined | damaged
        held_out = self.held_out
        if damaged.keys() & set(held_out):
            try:
                held_out = evaluation_episodes(self.manifest, self.sweep.suite.held_out, quarantined.keys())
            except SubsetError as error:
                raise SweepError(self.sweep.name, [f"data: {error}"]) from None
        return replace(self, quarantined=quarantined, held_out=held_out)

    @classmethod
    def named(cls, name: str, storage_uri: str, here: bool = False) -> "SweepState":
        """Return a sweep that ran before; here: with the packages installed on this machine. Raises
        SweepError if none of that name did.
        """
        storage = open_storage(storage_uri)
        if not (facts := pinned_facts(storage, name)):
            known = sweep_names(storage)
            raise SweepError(
                storage.uri,
                [
                    f"no sweep named {name} ran here; "
                    + (
                        f"there are {', '.join(known)}"
                        if known
                        else "none did; --storage names the folder or s3:// URI of a sweep's results"
                    )
                ],
            )
        sweep = SweepConfig.stored(facts["sweep"], storage.uri)
        # The recorded path may name another storage by now, or on this machine.
        state = cls.open(sweep.model_copy(update={"storage": storage_uri}), here=here)
        return (
            state
            if here
            else replace(
                state, stored={key.fingerprint: stored_like(storage, key) for key in state.all_keys()}
            )
        )

    @property
    def training(self) -> str:
        """Fingerprint of what shapes the policies of all lines; of `training_key` if every line is the
        package's own without settings of its own.
        """
        sweep = self.sweep
        if sweep.train.match == "steps" and all(line.plain for line in sweep.lines):
            return self._stored_as(self.training_key)
        most, seed = sweep.data.most_demos, sweep.seeds[0]
        lines = {line.name: self.training_of(Arm(most, 0.0, seed, line.name)) for line in sweep.lines}
        return digest([lines, sweep.train.match])

    def training_of(self, arm: Arm) -> str:
        """Return the fingerprint of everything besides the arm that shapes its policy."""
        if arm not in self._trainings:
            self._trainings[arm] = self._stored_as(self.key_of(arm))
        return self._trainings[arm]

    def key_of(self, arm: Arm) -> Key:
        """Return the key of every input to an arm's policy other than the arm."""
        line, manifest = self.sweep.line(arm), self.seen_by(arm)
        if not line.own:
            parts = self.sweep.data_parts(
                manifest.fingerprint, self.quarantined, self.held_out, manifest.parts, arm
            )
            return self.external[line.name].key(parts, self.sweep.train_of(arm), self.packages)
        return self.sweep.training_key(
            manifest.fingerprint,
            self.quarantined,
            self._weights_of(line),
            self.packages,
            self.held_out,
            manifest.parts,
            arm,
            self.learner_code.get(line.name, {}),
        )

    def seen_by(self, arm: Arm | None = None) -> Manifest:
        """Return the manifest of the episodes that an arm's line may read; None: of a line that names no kind
        of videos.
        """
        return seen_by(self.manifest, self.sweep.labels_of(arm).video_kind if arm else "")

    def place_of(self, arm: Arm | None = None) -> str:
        """Return the URI of the store with the manifest `seen_by` an arm's line."""
        manifest = self.seen_by(arm)
        return self.episodes if manifest is self.manifest else merged_uri(self.storage, manifest)

    def arm_id(self, arm: Arm) -> str:
        """Return the arm's id, which names its checkpoints and its run in MLflow."""
        return arm.arm_id(self.training_of(arm))

    def _weights_of(self, line: Line) -> str:
        """Return the `weights_label` of what a line's video models start from."""
        source = self.sweep.source_of(line)
        return self.weights if source == self.sweep.weights else self.line_weights[source]

    def _stored_as(self, key: Key) -> str:
        return self.stored.get(key.fingerprint, key.fingerprint)

    @property
    def training_key(self) -> Key:
        """Key of every input to a policy with the sweep's own settings other than the arm."""
        manifest = self.seen_by()
        return self.sweep.training_key(
            manifest.fingerprint,
            self.quarantined,
            self.weights,
            self.packages,
            self.held_out,
            manifest.parts,
        )

    @property
    def protocol(self) -> str:
        """Fingerprint of the scoring protocol of the nominal suite."""
        return self.protocol_of("nominal")

    def protocol_of(self, shift: str, arm: Arm | None = None) -> str:
        """Return the fingerprint of the scoring protocol under a shift; arm: of its line, None: of the
        sweep's own policy.
        """
        return self._stored_as(self.protocol_key(shift, self.sweep.line(arm) if arm else None))

    @property
    def proprio(self) -> tuple[int, ...] | None:
        """Indices of the store's proprioceptive values that the policies get; None: all."""
        return self.sweep.suite.proprio_of(self.manifest.contract)

    @property
    def contract(self) -> Contract:
        """Conventions of the sweep's policies: the store's, with the chosen proprioception."""
        return self.sweep.suite.contract_of(self.manifest.contract)

    def protocol_key(self, shift: str, line: Line | None = None) -> Key:
        """Return the key of every input to the outcomes of a line under a shift, or to its action errors,
        other than the weights; None: of the sweep's own policy.
        """
        sampler = self.sweep.sampler_of(line) if line else self.sweep.sampler
        acting = self.device or "cpu", self.packages, self.learner_code.get(line.name, {}) if line else {}
        if test := self.action_error_test:
            return test.key(sampler, *acting)
        return protocol_key(self.sweep.to_suite(shift), self.contract, sampler, self.sweep.suite.gl, *acting)

    def keep_keys(self) -> None:
        """Store the parts of the sweep's keys, so that a later run can report which of them differ."""
        for key in self.all_keys():
            key.keep(self.storage)

    def all_keys(self) -> tuple[Key, ...]:
        """Return the keys of the training of every line, and of every suite."""
        sweep = self.sweep
        own = (
            sweep.possible_arms()
            if sweep.train.match == "epochs"
            else [Arm(sweep.data.most_demos, 0.0, sweep.seeds[0], line.name) for line in sweep.lines]
        )
        trainings = {key.fingerprint: key for key in (self.training_key, *map(self.key_of, own))}
        shifts = ("nominal", *sweep.suite.shifts, *(("select",) if sweep.suite.select else ()))
        protocols = {
            key.fingerprint: key
            for line in (None, *sweep.lines)
            for key in (self.protocol_key(shift, line) for shift in shifts)
        }
        return (*trainings.values(), *protocols.values())

    def on_device(self, device: str) -> "SweepState":
        """Return the sweep with policy servers of this device class, which is pinned."""
        if device == self.device:
            return self
        state = replace(self, device=device)
        state.pin()
        return state

    @property
    def comparable(self) -> str:
        """Fingerprint shared by the scores of one curve: the protocols of its lines and the rule that ends
        scoring.
        """
        told = None if self.sweep.suite.select else self.sweep.suite.decide
        keys = {self._stored_as(self.protocol_key("nominal", line)) for line in self.sweep.lines}
        own = self.protocol if keys == {self.protocol} else digest(sorted({self.protocol, *keys}))
        return f"{own}+{digest(told.model_dump(mode='json'))}" if told else own

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking URI of the sweep, with credentials if it has any."""
        return tracking_uri(self.sweep.mlflow, self.storage.uri)

    def arms(self) -> dict[str, Arm]:
        """Return the arms by id: the grid's, or those proposed so far."""
        return {self.arm_id(arm): arm for arm in self.sweep.grid() or self.decisions.proposed()}

    @cached_property
    def decisions(self) -> Decisions:
        """Decisions of the sweep's search."""
        return Decisions.of(self.sweep, self.storage)

    def record_failure(self, arm_id: str, sentence: str, trace: str) -> None:
        """Store that the arm's training failed permanently."""
        self.storage.put(
            f"{self._failures}{arm_id}.json",
            json.dumps(redacted_in({"sentence": sentence, "trace": trace}), indent=1).encode(),
        )

    def failures(self) -> dict[str, str]:
        """Return the arms whose training failed permanently: arm id -> cause, location of the whole trace,
        and fix.
        """
        place, mend = self.uri(self._failures), "demoscale run --retry-failed tries again"
        told = read_json_objects(self.storage, self._failures)
        return {
            arm_id: f"{failed['sentence']} (whole trace in {place}{arm_id}.json); {mend}"
            for arm_id, failed in told.items()
        }

    @property
    def _failures(self) -> str:
        return f"failures/{self.sweep.name}/"

    def subset(self, arm: Arm) -> Subset:
        """Return the arm's episodes, selected at the first call. Raises SweepError if the pinned data version
        has too few.
        """
        if arm in self._subsets:
            return self._subsets[arm]
        try:
            subset = self.sweep.select(self.manifest, arm, self.quarantined.keys(), frozenset(self.held_out))
        except SubsetError as error:
            mend = "give the sweep another name to use the store as it is now"
            where = self.episodes if self.manifest.parts else self.sweep.data.episodes
            raise SweepError(
                self.sweep.name,
                [f"it keeps to version {self.version} of {where}; {error}; {mend}"],
            ) from None
        self._subsets[arm] = subset
        return subset

    def used(self) -> frozenset[str]:
        """Return every episode that an arm may read, and the quarantined ones; the largest arm of each seed
        and line contains all others of them.
        """
        subsets = [
            self.subset(self.sweep.largest(seed, line.name))
            for line in self.sweep.lines
            for seed in self.sweep.seeds
        ]
        return frozenset(self.quarantined).union(*(subset.episodes for subset in subsets))

    def video_test(self, line: Line) -> VideoBenchmark | None:
        """Return the test of the generated video of a line's checkpoints; None if none is requested or
        generated.

        Raises SubsetError if too few held-out clips are left.
        """
        if not line.imagines:
            return None
        shape, sampler = self.sweep.config_of(line).clip, self.sweep.sampler_of(line)
        assert sampler
        if (shape, sampler) not in self._video_tests:
            self._video_tests[shape, sampler] = self._video_test(shape, sampler)
        return self._video_tests[shape, sampler]

    def _video_test(self, shape: ClipShape, sampler: SamplerConfig) -> VideoBenchmark | None:
        sweep = self.sweep
        if not sweep.suite.video_clips or shape.frames_per_view == 1:
            return None
        manifest = self.seen_by()
        clips = HeldOut.choose(
            self.place_of(),
            manifest,
            sweep.suite.tasks or manifest.tasks,
            sweep.suite.video_clips,
            self.used(),
            shape,
        )
        return VideoBenchmark(replace(clips, proprio=self.proprio), sampler)

    def possible_video_test(self, arm: Arm) -> VideoBenchmark | None:
        """Return `video_test` of an arm's line; None also if too few held-out clips are left."""
        try:
            return self.video_test(self.sweep.line(arm))
        except SubsetError:
            return None

    @cached_property
    def action_error_test(self) -> ActionErrorBenchmark | None:
        """Return the test of the checkpoints' actions on held-out episodes; None if the sweep plays
        episodes.
        """
        if not self.held_out:
            return None
        return ActionErrorBenchmark.of(self.place_of(), self.seen_by(), self.held_out, self.proprio)

    def action_error(self, arm: Arm, checkpoint: str) -> ActionErrorScore:
        """Return the action error of an arm's checkpoint, given its fingerprint, from the ledger so far."""
        errors = ActionErrorLedger(self.storage, checkpoint, self.protocol_of("nominal", arm)).read()
        found = [errors[episode] for episode in self.held_out if episode in errors]
        return ActionErrorScore.of(found, len(self.held_out))

    def job(self, arm: Arm) -> TrainJob | ExternalJob:
        """Return the arm's training job. Raises SweepError if the folder of its external policy was not
        read.
        """
        return self.own_job(arm) if self.sweep.line(arm).own else self._external_job(arm)

    def _external_job(self, arm: Arm) -> ExternalJob:
        line = self.external[arm.kind]
        if line.policy is None:
            raise SweepError(
                self.sweep.name, [f"{arm.name}: the folder of its policy is not on this machine"]
            )
        return ExternalJob(
            arm=arm,
            arm_id=self.arm_id(arm),
            episodes=self.place_of(arm),
            version=self.version,
            subset=self.subset(arm),
            policy=line.policy,
            options=line.options,
            train=self.sweep.train_of(arm),
            storage=self.storage.uri,
            lock=line.lock,
            proprio=self.proprio,
            code=file_hashes(),
        )

    def own_job(self, arm: Arm) -> TrainJob:
        """Return the training job of an arm of this package's own policies."""
        sweep, line, train = self.sweep, self.sweep.line(arm), self.sweep.train_of(arm)
        label = self._weights_of(line)
        return TrainJob(
            arm=arm,
            arm_id=self.arm_id(arm),
            episodes=self.place_of(arm),
            version=self.version,
            subset=self.subset(arm),
            config=sweep.config_of(line),
            train=train,
            objective=train.objective if line.imagines else "action",
            weights=label if COMMIT_OF_HUB.search(label) else sweep.weights_of(line),
            label=label,
            code=run_files(learners=[line.learner]),
            decode=sweep.data.decode,
            proprio=self.proprio,
        )

    def stage_one(self, arm: Arm) -> TrainJob | None:
        """Return the training job of the video model that the arm's head reads, shared by arms with the same
        one; None if none is separate.
        """
        if not self.sweep.line(arm).imagines or self.sweep.train_of(arm).mode != "two_stage":
            return None
        videos = self.sweep.largest(arm.seed, arm.kind) if self.sweep.train.videos == "sweep" else arm
        return self.own_job(arm).stage_one(self.seen_by(arm), self.subset(videos))

    def arm_state(self, arm: Arm) -> ArmStatus:
        """Return the initial state of an arm, before any training or scoring."""
        video = self.stage_one(arm)
        train = self.sweep.train_of(arm)
        return ArmStatus(
            arm,
            train.end,
            video.arm_id if video else "",
            selecting=self.sweep.suite.select is not None,
            choosing=self.sweep.suite.report == "best",
            unit=train.unit,
        )

    def last_step(self, arm_id: str) -> int:
        """Return the optimiser step at which an arm's training ends, or its budget in seconds."""
        if self.sweep.train.match != "epochs":
            return self.sweep.train.end
        return self.sweep.train_of(self.arms()[arm_id]).end

    def checkpoints(self, arm_id: str) -> dict[int, CheckpointRecord]:
        """Return the complete checkpoints of a training run by step.

        An arm's checkpoints beyond its last step are left out: another sweep may train the same arm for
        longer.
        """
        records = read_records(self.storage, arm_id)
        if arm_id.startswith(STAGE_ONE):
            return records
        last = self.last_step(arm_id)
        return {step: record for step, record in records.items() if step <= last}

    def films(self, arm: Arm) -> dict[str, str]:
        """Return the rollout videos of an arm's last checkpoint: episode id -> storage key."""
        checkpoint = self.checkpoints(self.arm_id(arm)).get(self.sweep.train_of(arm).end)
        if not checkpoint:
            return {}
        return Ledger(self.storage, checkpoint.fingerprint, self.protocol_of("nominal", arm)).films()

    def record_removal(self, run: str, step: int) -> None:
        """Store that the checkpoint of this step is removed, if it was recorded; before it is, so that a
        killed removal leaves no checkpoint that seems to be there.
        """
        if record := read_records(self.storage, run).get(step):
            write_record(self.storage, run, step, replace(record, removed=True))

    def record_checkpoint(self, report: Reported) -> None:
        """Store that a checkpoint is complete, once it is durable: a power failure must not leave the note
        without the checkpoint.
        """
        self.storage.sync(f"arms/{report.run}/step_{report.step:06d}/")
        record = CheckpointRecord(
            fingerprint=report.checkpoint, trained_on=report.trained_on, removed=False, **report.metrics
        )
        write_record(self.storage, report.run, report.step, record)

    def without_torn(self, board: SweepStatus) -> dict[str, list[int]]:
        """Return the unscored checkpoints that a full disk or a power failure left incomplete: arm id ->
        steps.

        They count as not written from now on, so that training resumes from the newest intact one. Runs whose
        folder was removed are left alone.
        """
        torn: dict[str, list[int]] = {}
        for arm_id, arm in board.arms.items():
            unscored = arm.scoring.keys() - arm.scores.keys()
            if arm.selecting and arm.report is None:
                unscored |= arm.scoring.keys() & {arm.steps}
            if not unscored:
                continue
            for step, checkpoint in self.checkpoints(arm_id).items():
                if (
                    step not in unscored
                    or checkpoint.removed
                    or is_complete(self.checkpoint_uri(arm_id, step), checkpoint.fingerprint)
                    or not self.storage.list(f"arms/{arm_id}/")
                ):
                    continue
                note_damaged(self.storage, arm_id, step)
                torn.setdefault(arm_id, []).append(step)
        return torn

    def uri(self, key: str) -> str:
        """Return the URI of a storage key, for code that opens files without `Storage`."""
        return f"{self.storage.uri}/{key}"

    def checkpoint_uri(self, arm_id: str, step: int) -> str:
        """Return the URI of the folder that holds an arm's checkpoint of this step."""
        return f"{self.uri('arms')}/{arm_id}/step_{step:06d}"

    def board(self) -> SweepStatus:
        """Return the state of every arm as the storage has it."""
        board = SweepStatus({arm_id: self.arm_state(arm) for arm_id, arm in self.arms().items()})
        stopped, failures = self.decisions.stopped(), self.failures()
        for arm_id, state in board.arms.items():
            scored = self.sweep.scored_steps(state.arm)
            for step, checkpoint in sorted(self.checkpoints(arm_id).items()):
                state.step, state.loss, state.trained_on = step, checkpoint.loss, checkpoint.trained_on
                if checkpoint.removed:
                    state.removed.add(step)
                if step not in scored:
                    state.scoring[step] = 0, 0
                    continue
                if self.held_out:
                    measured = self.action_error(state.arm, checkpoint.fingerprint)
                    state.scoring[step] = measured.episodes, measured.listed
                    if measured.complete:
                        state.scores[step] = measured
                    continue
                score, _ = self.score(state.arm, checkpoint.fingerprint, self.sweep.suite.decided_on)
                state.scoring[step] = score.episodes, score.episodes if score.complete else score.listed
                if score.complete:
                    state.scores[step] = score
                if step == state.steps:
                    shifted = {
                        shift: self.score(state.arm, checkpoint.fingerprint, shift)[0]
                        for shift in self.sweep.suite.shifts
                    }
                    state.shifted = {shift: score for shift, score in shifted.items() if score.complete}
            state.best = self.best_checkpoint(arm_id, state)
            for step, checkpoint in self.checkpoints(arm_id).items() if state.selecting else ():
                if step in (state.steps, state.best):
                    report, _ = self.score(state.arm, checkpoint.fingerprint, "nominal")
                    if report.complete:
                        state.reports[step] = report
            for step in state.removed - state.scores.keys():  # nothing of it can be played any more
                state.scoring[step] = 0, 0
            state.stopped = stopped.get(arm_id)
            state.failure = failures.get(arm_id, "") if state.step < state.steps else ""
        board.charge(CostLedger.read(self.storage, self.sweep.name).by_arm())
        return board

    def best_checkpoint(self, arm_id: str, arm: ArmStatus) -> int | None:
        """Return the step of the arm's best checkpoint on the scenes of `select`, of equal ones the last;
        None before all have a complete score, and if `suite.report` does not ask for it.
        """
        if not arm.choosing or arm.steps not in arm.scores:
            return None
        steps = self.checkpoints(arm_id).keys() & self.sweep.scored_steps(arm.arm)
        scores = {step: score for step, score in arm.scores.items() if score.complete}
        return max(steps, key=lambda step: (scores[step].merit, step)) if steps <= scores.keys() else None

    def rule(self, arm: Arm) -> StoppingRule | None:
        """Return the rule that decides how much of the suite, or of `suite.select`, an arm's checkpoints are
        scored on; None: all of it.
        """
        if not (told := self.sweep.suite.decide):
            return None
        if not told.against:
            return StoppingRule(told.look_every, told.confidence, told.threshold)
        reference = reference_of(arm, told.against, self.sweep.grid())
        return (
            StoppingRule(told.look_every, told.confidence, against=self.arm_id(reference))
            if reference
            else None
        )

    def score(self, arm: Arm, checkpoint: str, shift: str) -> tuple[Score, list[Outcome]]:
        """Return the score of an arm's checkpoint under a shift, or on the episodes of `select`, from the
        ledger so far, and the outcomes it counts, in playing order.
        """
        rule = self.rule(arm) if shift == self.sweep.suite.decided_on else None
        return score_so_far(
            Ledger(self.storage, checkpoint, self.protocol_of(shift, arm)), self.sweep.to_suite(shift), rule
        )


def no_such_arm(sweep: str, name: str, arms: Iterable[Arm]) -> SweepError:
    """Return the error of a name that is no arm's, with the arms that there are or, of many, the closest."""
    names = sorted(arm.name for arm in arms)
    close = names if len(names) <= 12 else get_close_matches(name, names, 3) or names[:3]
    more = (
        f" and {len(names) - len(close)} more (`demoscale status {sweep}`)" if len(close) < len(names) else ""
    )
    return SweepError(
        f"sweep {sweep}", [f"{name} is no arm of it; there are {', '.join(close) or 'none yet'}{more}"]
    )


def last_checkpoint(sweep: str, arm: str, storage: str) -> tuple[str, SuiteConfig]:
    """Return the URI of an arm's last checkpoint (`arm`: name or id) and the sweep's suite. Raises SweepError
    if there is none.
    """
    state = SweepState.named(sweep, storage)
    arms = state.arms()
    arm_id = next((arm_id for arm_id, one in arms.items() if arm in (arm_id, one.name)), "")
    records = state.checkpoints(arm_id) if arm_id else {}
    steps = [step for step, record in records.items() if not record.removed]
    if not steps:
        if not arm_id:
            raise no_such_arm(sweep, arm, arms.values())
        raise SweepError(
            f"sweep {sweep}", [f"{arm} has no checkpoint yet; `demoscale status {sweep}` shows it"]
        )
    if state.held_out:
        raise SweepError(f"sweep {sweep}", [f"suite.held_out: {NOTHING_TO_PLAY}"])
    return state.checkpoint_uri(arm_id, max(steps)), state.sweep.suite
