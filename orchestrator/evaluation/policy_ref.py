"""A policy to be scored: a checkpoint in a folder, a bucket or MLflow, a policy server, or a Python
function.
"""

import hashlib
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.checkpoints import external_card
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.redaction import strip_credentials
from orchestrator.storage.base import open_storage
from policy.checkpoint_files import CheckpointError
from policy.config import PolicyConfig, SamplerConfig
from policy.errors import DemoscaleError
from policy.foreign import SCHEMES, is_foreign
from policy.interface import Contract
from sim_workers.rollout.policy_clients import PolicySource

LOGGED_MODEL = re.compile(r"models:/.+|m-[0-9a-f]{32}")
OURS = re.compile(r"[0-9a-f]{16}")
"""The form of a checkpoint's fingerprint."""
REACH_S = 5.0
"""Seconds within which a server of another project must accept a connection."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class PolicyRefError(DemoscaleError):
    """Error of one sentence: why the given name is not a policy that can be scored."""


@dataclass(frozen=True)
class PolicyRef:
    """A policy to be scored, possibly not yet connected, and the identity of its scores."""

    name: str
    """Name that the user gave, without credentials."""
    contract: Contract
    fingerprint: str
    """Identity of the policy; empty if unknown, so that no earlier outcome is reused for it."""
    sampler: SamplerConfig | None
    """Sampler of a demoscale checkpoint; None for any other policy."""
    reach: Callable[[int], PolicySource]
    """Connects the given number of rollout workers on a connected Ray. Raises CheckpointError if the policy
    cannot be loaded.
    """
    learner: str = ""
    """Name of the policy of an installed package (`policy.learner`) that a checkpoint is of; empty for every
    other policy.
    """


@dataclass(frozen=True)
class ForeignOptions:
    """What the user states about a policy server of another project (`policy.foreign`)."""

    contract: str = ""
    """JSON file with the contract, which such a server does not state."""
    layout: str = ""
    """Name or JSON file of the layout; empty: the protocol's usual one."""
    execute: int = 0
    """Actions of a chunk that are executed before the next observation; 0: all."""


def resolve_policy(
    name: str,
    rung: str = "",
    own_rung: bool = False,
    fingerprint: str = "",
    tracking: str = "",
    foreign: ForeignOptions = ForeignOptions(),  # immutable
    run_programs: bool = False,
) -> PolicyRef:
    """Return the policy with a name: a folder, s3://..., models:/ID, models:/NAME/VERSION,
    models:/NAME@ALIAS, http(s)://... (several servers of one policy with commas between), openpi://...,
    vla-eval://..., groot://..., or MODULE:FUNCTION.

    rung: rung of a checkpoint's ladder. own_rung: a checkpoint without that rung uses its own, as a sweep's
    baselines do. fingerprint: the user's identifier of a policy that has no fingerprint of its own. tracking:
    URI of the MLflow that has the logged models. foreign: for servers of other projects only. run_programs:
    whether the programs in a checkpoint of an external policy may run.

    Raises PolicyRefError if the arguments are wrong, and CheckpointError, StorageError or TrackingError if
    reading the policy fails.
    """
    if foreign != ForeignOptions() and not is_foreign(name):
        raise PolicyRefError(
            f"{strip_credentials(name)} states its own contract; leave out --contract, --layout and"
            f" --execute, which are for {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        )
    if name.startswith(("s3://", "file://")) or Path(name).is_dir() or LOGGED_MODEL.fullmatch(name):
        if fingerprint:
            raise PolicyRefError("a checkpoint has a fingerprint of its own; leave out --fingerprint")
        return _checkpoint(name, rung, own_rung, tracking, run_programs)
    if rung and not own_rung:
        raise PolicyRefError(f"--rung {rung}: only a checkpoint's folder has rungs; leave it out")
    if fingerprint and (OURS.fullmatch(fingerprint) or not NAME.fullmatch(fingerprint)):
        raise PolicyRefError(
            f"--fingerprint {fingerprint}: write letters, digits, '.', '_' and '-', and not 16 hex digits,"
            " which name a checkpoint"
        )
    if is_foreign(name):
        return _foreign(name, fingerprint, foreign)
    return _served(name, fingerprint) if "://" in name else _function(name, fingerprint)


def _served(name: str, fingerprint: str) -> PolicyRef:
    from policy.http_policy import RemotePolicy
    from policy.http_protocol import RemoteError
    from sim_workers.rollout.policy_clients import RemoteServer

    # a policy server takes no credentials, and its URL is written to logs and results
    urls = [strip_credentials(url) for url in name.split(",")]
    try:
        contracts = [RemotePolicy(url, patience_s=3.0).contract for url in urls]
    except RemoteError as error:
        raise PolicyRefError(str(error)) from None
    for url, contract in zip(urls, contracts, strict=True):
        if differences := contracts[0].mismatches(contract):
            raise PolicyRefError(f"{url} serves another policy than {urls[0]}: {differences[0]}")
    name = ",".join(urls)
    return PolicyRef(name, contracts[0], fingerprint, None, lambda _: RemoteServer(name))


def _foreign(name: str, fingerprint: str, options: ForeignOptions) -> PolicyRef:
    from policy.foreign import foreign_policy, read_contract
    from policy.foreign.layout import Layout
    from policy.http_protocol import RemoteError
    from sim_workers.rollout.policy_clients import ForeignServer

    url = strip_credentials(name)
    scheme = url.partition("://")[0]
    if not options.contract:
        raise PolicyRefError(
            f"{url}: a server of {scheme} states no contract; name a JSON file of it with --contract"
            " (docs/serving.md)"
        )
    try:
        contract = read_contract(Path(options.contract))
        layout = Layout.named(options.layout or scheme, contract)
        foreign_policy(url, contract, layout, options.execute)
        address = urlsplit(url)
        socket.create_connection((address.hostname or "", address.port or 0), REACH_S).close()
    except RemoteError as error:
        raise PolicyRefError(str(error)) from None
    except OSError as error:
        raise PolicyRefError(f"no policy server answers at {url}; is it running? ({error})") from None
    source = ForeignServer(url, contract, layout, options.execute)
    if fingerprint:  # another layout is another policy
        stated = repr((layout, options.execute)).encode()
        fingerprint = f"{fingerprint}.{hashlib.sha256(stated).hexdigest()[:8]}"
    return PolicyRef(url, contract, fingerprint, None, lambda _: source)


def _function(name: str, fingerprint: str) -> PolicyRef:
    from sim_workers.rollout.policy_clients import FactoryPolicy

    if "/" in name and ":" not in name:
        raise PolicyRefError(f"there is no folder {name}")
    if ":" not in name:
        raise PolicyRefError(
            f"{name} names no policy: it must look like package.module:function, or be a checkpoint's folder;"
            " an arm goes with --sweep"
        )
    # Ray's processes must find modules in this process's working directory too.
    sys.path.insert(0, os.getcwd())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    try:
        contract = FactoryPolicy(name).make().contract
    except ValueError as error:
        raise PolicyRefError(str(error)) from None
    return PolicyRef(name, contract, fingerprint, None, lambda _: FactoryPolicy(name))


def _checkpoint(name: str, rung: str, own_rung: bool, tracking: str, run_programs: bool) -> PolicyRef:
    from orchestrator.checkpoints.reader import card_of

    place, logged = name, ""
    if LOGGED_MODEL.fullmatch(name) and not Path(name).is_dir():
        from orchestrator.tracking.mlflow_reader import logged_checkpoint

        place, logged = logged_checkpoint(tracking, name)
    uri = place if "://" in place else str(Path(place).resolve())
    if open_storage(uri).exists(external_card.CARD):
        return _external(name, uri, logged, bool(rung) and not own_rung, run_programs)
    card, fingerprint = card_of(uri)
    if logged not in ("", fingerprint):
        changed = f"it was logged with the fingerprint {logged} and has {fingerprint} now"
        raise CheckpointError(
            f"{uri}: not the checkpoint that {name} names: {changed}; restore the one that was logged"
        )
    if card.provenance.get("objective") == "video":
        raise CheckpointError(
            f"{uri}: a video model without an action head, which cannot act; train an action head on it"
            " (train.mode: two_stage)"
        )
    if rung and rung not in card.config.ladder and not (own_rung and card.config.video is None):
        raise PolicyRefError(f"{name} has no rung {rung}; it has {', '.join(card.config.ladder)}")
    learner = card.config.learner
    reach = _served_by_checkpoint(uri, fingerprint, rung, learner)
    return PolicyRef(name, card.contract, fingerprint, _sampler(card.config, rung), reach, learner)


def _external(name: str, uri: str, logged: str, with_rung: bool, run_programs: bool) -> PolicyRef:
    """Return the policy of a checkpoint of an external policy. logged: fingerprint that it was logged with,
    empty if it was not. Raises PolicyRefError unless `run_programs`,
    CheckpointError if it is damaged.
    """
    from orchestrator.checkpoints.reader import open_checkpoint
    from policy.checkpoint_files import fingerprint

    card = external_card.ExternalCard.read(open_storage(uri))
    if with_rung:
        raise PolicyRefError(f"--rung: {name} is a checkpoint of {card.policy}, which has none; leave it out")
    if not run_programs:
        raise PolicyRefError(
            f"{name} is a checkpoint of the policy {card.policy}, which programs in it serve; look at"
            f" {uri}/{external_card.PROGRAMS}, and add --run-programs if they may run here"
        )
    with open_checkpoint(uri) as folder:
        identity = fingerprint(folder)
        if not card.is_whole(folder) or logged not in ("", identity):
            raise CheckpointError(f"{uri}: its files are not those that it was stored with; restore them")
    return PolicyRef(name, card.contract, identity, None, _served_by_checkpoint(uri, identity, ""))


def _served_by_checkpoint(
    uri: str, fingerprint: str, rung: str, learner: str = ""
) -> Callable[[int], PolicySource]:
    """Return what connects rollout workers to policy servers of this checkpoint. learner: as in
    `PolicyRef`.
    """

    def reach(workers: int) -> PolicySource:
        from orchestrator.cluster.placement import servers_alone
        from orchestrator.cluster.ray_runtime import dedicated_resources, resources
        from orchestrator.evaluation.ray_actors import policy_servers, serving

        gpus = dedicated_resources("servers").get("GPU") or resources().get("GPU", 0.0)
        servers = policy_servers(*servers_alone(gpus, workers), rung, learners=[learner])
        return serving(servers, CheckpointRef(uri, fingerprint))

    return reach


def _sampler(config: PolicyConfig, rung: str) -> SamplerConfig:
    """Return the sampler that a sweep has in its protocol: that of its preset on the rung, also for a
    baseline with a single sampler.
    """
    from policy.presets import PRESETS

    ours = PRESETS.get(config.preset)
    return (ours if ours and config.video is None else config).sampler_on(rung)
