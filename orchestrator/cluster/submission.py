"""A sweep sent to a Ray cluster, as Python has it: `Sweep.load(...).submit("http://head:8265").wait().curve()`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.cluster.code_bundle import Staged, staged
from orchestrator.cluster.ray_jobs import Cluster, Job, Load, SubmitError
from orchestrator.config.sweep_config import Sweep
from orchestrator.provenance import digest
from orchestrator.redaction import redacted
from orchestrator.storage.base import open_storage
from orchestrator.storage.identity import store_of
from orchestrator.tracking.mlflow_writer import tracking_uri

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve

SWEEP_FILE = "sweep.yaml"
CHECK = "python -m orchestrator.cluster.version_check"
COMMAND = "python -m jobs."


@dataclass(frozen=True)
class Submitted:
    """A sweep that a cluster runs, or has run."""

    sweep: Sweep
    cluster: Cluster
    job: Job
    sent: Staged | None
    """What travelled; None if it ran already, and nothing was started."""

    def wait(self, echo: Callable[[str], None] = lambda text: None) -> "Submitted":
        """Until it is done; a connection that breaks is made again. `echo` hears what it prints. SubmitError if it was stopped or failed."""
        job = self.cluster.follow(self.job.job_id, echo, lambda line: None)
        if job.status != "SUCCEEDED":
            raise SubmitError(f"{job.job_id} at {self.cluster.address}: {ended(job)}")
        return replace(self, job=job)

    def stop(self) -> "Submitted":
        """End it in good order, as Ctrl-C does; submitted again, it continues."""
        return replace(self, job=self.cluster.stop(self.job))

    def curve(self) -> "Curve":
        """What MLflow knows of it so far."""
        from orchestrator.report.sample_efficiency_curve import Curve

        storage, name = open_storage(self.sweep.storage).uri, self.sweep.name
        return Curve.read(tracking_uri(self.sweep.mlflow, storage), name, store_of(storage, name), storage)


def send(load: Load, texts: Mapping[str, str], cluster: Cluster, pip: bool = False) -> tuple[Job, Staged | None]:
    """Start it with the code of this checkout and these files beside it, or find it running; what travelled, None if nothing was started."""
    with staged(texts) as sent:
        job, started = cluster.submit(load, sent.folder, pip)
        return job, sent if started else None


def sweep_load(sweep: Sweep) -> tuple[Load, dict[str, str]]:
    """What runs the sweep, and the files it needs besides the checkout."""
    text = sweep.to_yaml()
    command = f"{CHECK} && {COMMAND}sweep {SWEEP_FILE}"
    return Load("sweep", sweep.name, open_storage(sweep.storage).uri, digest(text), command), {SWEEP_FILE: text}


def ended(job: Job) -> str:
    """How, and what to do about it."""
    last = redacted(job.message).splitlines()[0] if job.message else ""
    told = {"SUCCEEDED": "done", "STOPPED": "stopped; submit the same again to continue"}
    return told.get(job.status) or f"failed; submit the same again to continue. {last}".rstrip()
