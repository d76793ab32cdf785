"""A serve command's side: the checkpoint that it serves, and where.

The job is the JSON file that the environment variable DEMOSCALE_SERVE names; policies/README.md
describes its fields. Needs numpy beside the standard library.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.train_job import read_stated
from policy.http_server import serve
from policy.interface import Observation, Policy

SERVE = "DEMOSCALE_SERVE"
"""Environment variable with the path of the job."""


@dataclass(frozen=True)
class ServeJob:
    """One checkpoint to serve."""

    policy: Path
    """Folder of the policy's manifest."""
    checkpoint: Path
    """Folder that the training command wrote."""
    contract: dict[str, Any]
    """`policy.interface.Contract` of the data that the checkpoint was trained on, as JSON."""
    host: str
    port: int
    device: str
    threads: int
    options: dict[str, Any]
    """Settings of the policy: the manifest's, and over them the line's."""

    @classmethod
    def read(cls) -> "ServeJob":
        """Return the job of this process. Raises SystemExit if there is none, or a field is missing."""
        stated = read_stated(SERVE, [field.name for field in fields(cls)])
        return cls(**{**stated, "policy": Path(stated["policy"]), "checkpoint": Path(stated["checkpoint"])})


def serve_policy(job: ServeJob, policy: Policy) -> None:
    """Serve the policy until this process is ended."""
    serve(policy, job.host, job.port)


def with_history(observation: Observation, steps: int) -> list[Observation]:
    """Return the last `steps` observations, oldest first; the first one repeated where there are fewer."""
    last = [*observation.history, observation][-steps:]
    return [last[0]] * (steps - len(last)) + last
