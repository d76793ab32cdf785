"""A policy to be scored, wherever it is: a checkpoint in a folder, a bucket or MLflow, a policy server, a Python function."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.credentials import shown
from orchestrator.sections import SuiteChoice
from orchestrator.spec import SweepError
from policy.config import PolicyConfig, SamplerConfig
from policy.interface import Contract
from sim_workers.sources import PolicySource

LOGGED_MODEL = re.compile(r"models:/.+|m-[0-9a-f]{32}")
OURS = re.compile(r"[0-9a-f]{16}")
"""The form of a checkpoint's fingerprint."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class SubjectError(ValueError):
    """One sentence: why what was named is no policy that can be scored."""


@dataclass(frozen=True)
class Subject:
    """A policy that may never have been reached yet, and what its scores are known by."""

    name: str
    """As it was named, without credentials."""
    contract: Contract
    fingerprint: str
    """Which policy exactly; empty where nobody knows, so that no earlier outcome can be taken for one of its own."""
    sampler: SamplerConfig | None
    """How it acts, of a checkpoint of ours."""
    reach: Callable[[int], PolicySource]
    """From so many rollout workers, once Ray is there. CheckpointError if it cannot be loaded."""


def find(name: str, rung: str = "", own_rung: bool = False, fingerprint: str = "", tracking: str = "") -> Subject:
    """What is named: a folder, s3://..., models:/ID, http(s)://..., or MODULE:FUNCTION.

    rung: of a checkpoint's ladder; own_rung: one that does not have it acts on its own, as a sweep's baselines do. fingerprint: what the
    user knows the policy by, where it has no fingerprint of its own. tracking: the MLflow that knows logged models. SubjectError for a
    mistake in what was named; CheckpointError, StorageError, TrackingError for what is wrong there.
    """
    if name.startswith(("s3://", "file://")) or Path(name).is_dir() or LOGGED_MODEL.fullmatch(name):
        if fingerprint:
            raise SubjectError("a checkpoint is known by its own fingerprint; leave out --fingerprint")
        return _checkpoint(name, rung, own_rung, tracking)
    if rung and not own_rung:
        raise SubjectError(f"only a checkpoint's folder has a ladder to take --rung {rung} from")
    if fingerprint and (OURS.fullmatch(fingerprint) or not NAME.fullmatch(fingerprint)):
        raise SubjectError(f"--fingerprint {fingerprint}: write letters, digits, '.', '_' and '-', and not 16 hex digits, which name a checkpoint")
    return _served(name, fingerprint) if "://" in name else _function(name, fingerprint)


def last_checkpoint(sweep: str, arm: str, storage: str) -> tuple[str, SuiteChoice]:
    """The URI of an arm's last checkpoint, the arm known by name or id, and the sweep's suite. SweepError if there is none."""
    from orchestrator.state import SweepState

    state = SweepState.named(sweep, storage)
    arms = state.arms()
    arm_id = next((arm_id for arm_id, one in arms.items() if arm in (arm_id, one.name)), "")
    steps = state.checkpoints(arm_id) if arm_id else {}
    if not steps:
        why = (
            "has no checkpoint yet" if arm_id else f"is no arm of it; there are {', '.join(sorted(one.name for one in arms.values())) or 'none yet'}"
        )
        raise SweepError(f"sweep {sweep}", [f"{arm} {why}"])
    return state.checkpoint_uri(arm_id, max(steps)), state.sweep.suite


def _served(url: str, fingerprint: str) -> Subject:
    from policy.remote import RemoteError, RemotePolicy
    from sim_workers.sources import Remote

    url = shown(url)  # a policy server asks nobody who they are, and what is said of one may be written down
    try:
        contract = RemotePolicy(url, patience_s=3.0).contract
    except RemoteError as error:
        raise SubjectError(str(error)) from None
    return Subject(url, contract, fingerprint, None, lambda _: Remote(url))


def _function(name: str, fingerprint: str) -> Subject:
    from sim_workers.sources import Named

    if "/" in name and ":" not in name:
        raise SubjectError(f"there is no folder {name}")
    # Ray's processes look for modules where this one does.
    sys.path.insert(0, os.getcwd())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    try:
        contract = Named(name).make().contract
    except ValueError as error:
        raise SubjectError(str(error)) from None
    return Subject(name, contract, fingerprint, None, lambda _: Named(name))


def _checkpoint(name: str, rung: str, own_rung: bool, tracking: str) -> Subject:
    from orchestrator.checkpoints import card_of
    from policy.checkpoint import CheckpointError

    place, logged = name, ""
    if LOGGED_MODEL.fullmatch(name) and not Path(name).is_dir():
        from orchestrator.tracked import logged_checkpoint

        place, logged = logged_checkpoint(tracking, name)
    uri = place if "://" in place else str(Path(place).resolve())
    card, fingerprint = card_of(uri)
    if logged not in ("", fingerprint):
        changed = f"it was logged with the fingerprint {logged} and has {fingerprint} now"
        raise CheckpointError(f"{uri}: not the checkpoint that {name} names: {changed}; bring back the one that was logged")
    if card.provenance.get("objective") == "video":
        raise CheckpointError(f"{uri}: a video model alone, which imagines and cannot act; train an action head on it (train.mode: two_stage)")
    if rung and rung not in card.config.ladder and not (own_rung and card.config.video is None):
        raise SubjectError(f"{name} has no rung {rung}; it has {', '.join(card.config.ladder)}")

    def reach(workers: int) -> PolicySource:
        from orchestrator.cluster import resources
        from orchestrator.evaluate import policy_servers, serving
        from orchestrator.placement import Placement
        from orchestrator.server import policy_of

        placement = Placement.fit(resources(), 1, workers, 1)
        return serving(policy_servers(placement.servers, placement.server_gpus, rung), policy_of(uri, fingerprint))

    return Subject(name, card.contract, fingerprint, _sampler(card.config, rung), reach)


def _sampler(config: PolicyConfig, rung: str) -> SamplerConfig:
    """As a sweep says it in its protocol: of its preset on the rung, also where a baseline has but one way to act."""
    from policy.presets import PRESETS

    ours = PRESETS.get(config.preset)
    return (ours if ours and config.video is None else config).sampler_on(rung)
