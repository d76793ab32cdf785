"""Lines of a sweep's curve (`policy` of a sweep file): the policies that it trains, ours and external."""

import difflib
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from orchestrator.config.policy_manifest import ManifestError, PolicyManifest, load
from orchestrator.config.schema import Section, Train, distinct, without
from policy import entry_points
from policy.config import DIFFUSION_POLICY, VIDEO_ACTION, PolicySettings
from policy.entry_points import POLICIES

Preset = Literal["tiny", "svd-128-lite", "svd-256"]


def _known_weights(weights: str) -> str:
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


Weights = Annotated[str, AfterValidator(_known_weights)]

_SHARED = {
    "steps",
    "match",
    "seconds",
    "videos",
    "batch_size",
    "workers",
    "checkpoint_every",
    "sharding",
}
_OF_VIDEO = {
    "mode",
    "video_steps",
    "head_learning_rate",
    "loss_weights",
    "gradient_checkpointing",
    "feature_cache_mb",
}
LINE_TRAIN = Train.model_fields.keys() - _SHARED
"""Fields of `train` that a line may have values of its own for."""

OWN_LINES = (VIDEO_ACTION, DIFFUSION_POLICY)
"""Policies of this package."""
LINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
"""Names that are safe in file names, tags and arm ids."""
RESERVED = ("demos-", "video-")
"""Prefixes of the names of arms and of stage-1 video models, which no line may have."""


class LineData(Section):
    """What a line learns from, in place of what `data` says."""

    labelled: PositiveInt | Literal["all"] | None = None
    """Number of labelled tasks, the first ones of `data.labelled_tasks`, or `all` tasks of the store; empty:
    those of `data.labelled_tasks`.
    """
    unlabelled_videos: NonNegativeInt | None = None
    """Videos of every task that is not labelled; 0: none, which makes the line a control for their worth.
    Empty: `data.unlabelled_videos`.
    """
    videos: str = ""
    """Kind of videos that it learns from, a `name` of `data.episodes`: all its action-free episodes are from
    there, as many per demonstrated task as `data.action_free_ratio` says, and tasks take turns. Empty: from
    parts without a name.
    """

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty `videos`, so that stored files of sweeps without kinds stay as they were."""
        return without(serialize(self), videos="")


class Line(Section):
    """One line of the curve: a policy and how it is trained. Alone, a string is its `policy`."""

    name: str = ""
    """Names its arms, and the line on the page; empty: the last part of `policy`."""
    policy: Annotated[str, Field(min_length=1)]
    """`video_action`; `diffusion_policy`; the name of a policy that an installed package offers (entry points
    `demoscale.policies`); or, with a `/`, the folder of an external policy, which holds a `policy.yaml`:
    `policies/lerobot_act`.
    """
    preset: Preset | None = None
    """Empty: `policy.preset`; not of an external policy."""
    weights: Weights | None = None
    """Where the video model of `video_action` starts; empty: `policy.weights`."""
    train: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of `train` with another value in this line, not of an external policy; all but those that every
    line shares (`steps`, `match`, `seconds`, `videos`, `batch_size`, `workers`, `checkpoint_every`,
    `sharding`).
    """
    settings: PolicySettings | None = None
    """Values of this line's policy in place of those of `policy.settings`; not of an external policy."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of an external policy, which its `policy.yaml` lists, or of a policy of another package."""
    data: LineData | None = None
    """Labelled tasks and videos of this line, in place of those of `data`."""
    action_free: bool | None = None
    """Whether it is trained at every action-free ratio, or on demos alone; empty: whatever the policy can."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        """Turn a string into a line, name it, and ask an external policy what it learns from."""
        raw = {"policy": raw} if isinstance(raw, str) else raw
        if not isinstance(raw, dict) or not isinstance(policy := raw.get("policy"), str):
            return raw
        if not raw.get("name"):
            raw = raw | {"name": PurePath(policy).name}
        if "/" in policy and raw.get("action_free") is None:
            manifest = _manifest_of(policy)
            if isinstance(options := raw.get("options", {}), dict):
                manifest.with_options(options)
            raw = raw | {"action_free": manifest.action_free}
        elif policy not in OWN_LINES and raw.get("action_free") is None:
            _check_offered(policy)
            raw = raw | {"action_free": False}
        return raw

    @field_validator("name")
    @classmethod
    def _safe(cls, name: str) -> str:
        if not LINE_NAME.fullmatch(name) or name.startswith(RESERVED):
            raise ValueError(
                f"{name!r} cannot name a line; write at most 40 letters, digits, '.', '_' and '-', and"
                f" neither '{RESERVED[0]}' nor '{RESERVED[1]}' in front"
            )
        return name

    @model_validator(mode="after")
    def _fits_its_policy(self) -> "Line":
        if self.name in OWN_LINES and self.policy != self.name:
            raise ValueError(f"{self.name} is the name of this package's own policy; set name to another one")
        if not self.own:
            if wrong := [name for name in ("preset", "weights", "train", "settings") if getattr(self, name)]:
                raise ValueError(
                    f"{', '.join(wrong)}: {self.policy} is an external policy; its settings are `options`"
                )
            return self
        if self.policy in OWN_LINES and self.options:
            raise ValueError(f"options: {self.policy} has none; write preset, weights and train")
        allowed = train_fields(self.policy)
        if wrong := sorted(self.train.keys() - allowed):
            close = difflib.get_close_matches(wrong[0], allowed, 1)
            raise ValueError(
                f"train.{wrong[0]}: not a field that a line of {self.policy} can set"
                + (f"; did you mean {close[0]}?" if close else f"; those are {', '.join(sorted(allowed))}")
            )
        if not self.imagines and self.weights is not None:
            raise ValueError(f"weights: {self.policy} starts from random weights; leave the field out")
        if not self.imagines and self.action_free:
            raise ValueError(f"action_free: {self.policy} cannot learn from episodes without actions")
        return self

    @model_validator(mode="after")
    def _learns_from_videos(self) -> "Line":
        if self.data and not self.swept:
            for field in ("unlabelled_videos", "videos"):
                if getattr(self.data, field) not in (None, ""):
                    raise ValueError(
                        f"data.{field}: {self.policy} learns from demos alone; leave the field out"
                    )
        return self

    @property
    def own(self) -> bool:
        """Whether the policy is trained in this package's processes: it is no external one."""
        return "/" not in self.policy

    @property
    def learner(self) -> str:
        """Name of the entry point of another package's policy; empty for every other one."""
        return self.policy if self.own and self.policy not in OWN_LINES else ""

    @property
    def imagines(self) -> bool:
        """Whether the policy generates video."""
        return self.policy == VIDEO_ACTION

    @property
    def swept(self) -> bool:
        """Whether it has an arm per action-free ratio."""
        return self.imagines if self.action_free is None else self.action_free

    @property
    def plain(self) -> bool:
        """Whether it is the package's own policy without settings of its own."""
        return (
            self.policy in OWN_LINES
            and self.name == self.policy
            and not (self.train or self.preset or self.weights or self.settings or self.data)
        )


def train_fields(policy: str) -> Collection[str]:
    """Return the fields of `train` that a line of one of this package's policies may set."""
    return LINE_TRAIN if policy == VIDEO_ACTION else LINE_TRAIN - _OF_VIDEO


def _manifest_of(policy: str) -> PolicyManifest:
    """Return the manifest of an external policy. Raises ValueError with all its mistakes."""
    if not Path(policy).is_dir():
        raise ValueError(
            f"policy: there is no folder {policy}; write that of an external policy, which has a policy.yaml"
        )
    try:
        return load(policy).manifest
    except ManifestError as error:
        raise ValueError("\n".join(f"{policy}: {problem}" for problem in error.problems)) from None


def _check_offered(policy: str) -> None:
    """Raise ValueError unless an installed package offers a policy of that name."""
    offered = entry_points.names(POLICIES)
    if policy not in offered:
        known = (*OWN_LINES, *offered)
        close = difflib.get_close_matches(policy, known, 1)
        raise ValueError(
            f"policy: there is no policy {policy}; "
            + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
            + f" (an external policy is a folder, written with a /: ./{policy})"
        )


def _distinct_lines(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    names = [line.name.casefold() for line in lines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two lines are named {twice[0]}; give one of them another name")
    return lines


class PolicyChoice(Section):
    """Which policies learn, and what they start from."""

    preset: Preset = "tiny"
    """`tiny` (3 M parameters) runs on one CPU core; `svd-128-lite` (78 M, pictures of 128 pixels) trains in
    hours on one GPU; `svd-256` (1.9 B) is the paper's size and, where the file says nothing else, its recipe
    (docs/paper.md).
    """
    weights: Weights = ""
    """Where the video model starts, in diffusers' format: empty for the preset's own (`tiny`: shipped here;
    `svd-256`: SVD-XT from the hub; `svd-128-lite`: its autoencoder, with a U-Net of random weights), `none`
    for random weights, or a hub id, a folder, an s3:// URI.
    """
    baselines: Annotated[tuple[Literal["diffusion_policy"], ...], AfterValidator(distinct)] = ()
    """`diffusion_policy`: beside every demo count, a behaviour-cloning policy without video, trained for as
    many steps on the same demos.
    """
    settings: PolicySettings = PolicySettings()
    """Values of the policies in place of the preset's, such as {horizon: 16, stride: 2, padding: paper}."""
    lines: Annotated[tuple[Line, ...], AfterValidator(_distinct_lines)] = ()
    """The lines of the curve, each a policy, by its name or folder alone or as a mapping of the fields below;
    empty: `video_action` and the `baselines`.
    """


def lines_of(policy: PolicyChoice) -> tuple[Line, ...]:
    """Return the lines of the curve; without `lines`, the video-action policy and the baselines."""
    return policy.lines or tuple(map(_own_line, (VIDEO_ACTION, *policy.baselines)))


@lru_cache
def _own_line(policy: str) -> Line:
    return Line(policy=policy)
