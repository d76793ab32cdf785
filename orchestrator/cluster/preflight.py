"""Checks of a sweep before submission: a cluster's machines see neither this machine's folders nor its
secrets.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.cluster.code_bundle import SHIPPED
from orchestrator.config.sweep_config import SweepConfig, credential_problems
from orchestrator.provenance import CHECKOUT


def credentials_problem(field: str) -> str:
    """Return the sentence that refuses credentials in `field`; the value is not repeated."""
    return (
        f"{field}: it holds credentials, which everyone who sees the cluster's jobs could read; leave"
        " them out and give them to the cluster's machines, as MLFLOW_TRACKING_USERNAME and"
        " MLFLOW_TRACKING_PASSWORD, AWS_* or an instance role"
    )


def check_sweep(sweep: SweepConfig) -> list[str]:
    """Return why the sweep could not run on other machines, one sentence each with the fix; secrets are not
    repeated.
    """
    # a dumped sweep shows no credentials
    as_written = {**sweep.model_dump(mode="json"), "mlflow": sweep.mlflow}
    if problems := credential_problems(as_written):  # the sweep was changed after its validation
        return problems
    stores = [("data.episodes", store) for store in sweep.data.stores]
    for field, place in (*stores, ("storage", sweep.storage)):
        if locality(place) == "relative":
            problems.append(
                f"{field}: {place} is a folder of this machine; name s3://bucket/prefix, or the absolute path"
                " of a folder all nodes share"
            )
    if not isinstance(sweep.data.episodes, str):
        problems += [
            f"data.episodes.{number}.quality: {entry.quality} is a file of this machine and is not sent"
            " along; name the absolute path of a file that all nodes share"
            for number, entry in enumerate(sweep.data.episodes)
            if entry.quality and locality(entry.quality) == "relative"
        ]
    mlflow = sweep.mlflow.removeprefix("sqlite:///") if sweep.mlflow.startswith("sqlite:") else sweep.mlflow
    if not mlflow and sweep.storage.startswith("s3://"):
        problems.append(
            "mlflow: empty, so its database would be on the disk of the cluster's head and be deleted with"
            " it; name a tracking server, https://..., or a database that all nodes can reach"
        )
    elif mlflow and mlflow != "databricks" and locality(mlflow) == "relative":
        problems.append(
            f"mlflow: {sweep.mlflow} is a place on this machine; name a tracking server, or the absolute path"
            " of a folder all nodes share"
        )
    problems += [
        f"policy.lines.{number}.policy: {line.policy} is a folder of this machine and is not sent along; put"
        " it into policies/ of the checkout, or name the absolute path of a folder that all nodes share"
        for number, line in enumerate(sweep.policy.lines)
        if not line.own and locality(line.policy) == "relative" and stays_here(line.policy)
    ]
    weights = sweep.policy.weights
    if weights not in ("", "none") and not Path(weights).is_absolute() and Path(weights).is_dir():
        problems.append(
            f"policy.weights: {weights} is a folder of this machine and is not sent along; copy it to"
            " s3://bucket/prefix, or leave the field empty for the preset's own"
        )
    return problems


def warnings_for(sweep: SweepConfig) -> list[str]:
    """Return notes on assumptions that this machine cannot check, one sentence each."""
    places = {
        "storage": sweep.storage,
        "policy.weights": sweep.policy.weights,
        "mlflow": sweep.mlflow.removeprefix("sqlite:///"),
    }
    named = [*(("data.episodes", store) for store in sweep.data.stores), *places.items()]
    shared = [f"{field} ({place})" for field, place in named if locality(place) == "absolute"]
    notes = [f"{' and '.join(shared)} must be on a file system that all nodes share"] if shared else []
    if urlsplit(sweep.mlflow).hostname in ("localhost", "127.0.0.1", "::1"):
        notes.append(f"mlflow: {sweep.mlflow} means the cluster's head, not this machine")
    return notes


def locality(place: str) -> str:
    """Return `absolute` or `relative` for a path, empty for a network URI."""
    if "://" in place and not place.startswith("file:"):
        return ""
    return "absolute" if Path(re.sub("^file:(//)?", "", place)).is_absolute() else "relative"


def stays_here(value: str) -> bool:
    """Return whether the value names a file or folder of this machine that is not sent along."""
    if value.startswith(("./", "../", "~")):
        return True
    sent_along = value.partition("/")[0] in SHIPPED and (CHECKOUT / value).exists()
    return Path(value).exists() and not sent_along
