"""Python API of a sweep on a Ray cluster:
`SweepConfig.load(...).submit("http://head:8265").wait().curve()`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.cluster.code_bundle import CodeBundle, code_bundle
from orchestrator.cluster.ray_jobs import Cluster, Job, JobSpec, SubmitError
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.provenance import digest
from orchestrator.redaction import redact
from orchestrator.storage.base import open_storage
from orchestrator.storage.identity import store_of
from orchestrator.tracking.mlflow_writer import tracking_uri

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve

SWEEP_FILE = "sweep.yaml"
CHECK = "python -m orchestrator.cluster.version_check"
COMMAND = "python -m jobs."


@dataclass(frozen=True)
class SweepSubmission:
    """Sweep that a cluster runs, or has run."""

    sweep: SweepConfig
    cluster: Cluster
    job: Job
    sent: CodeBundle | None
    """Bundle that was sent; None if the sweep was running already, so that nothing was started."""

    def wait(self, echo: Callable[[str], None] = lambda text: None) -> "SweepSubmission":
        """Wait until the sweep is done; a broken connection is reopened. `echo` receives its output.

        Raises SubmitError if it was stopped or failed.
        """
        job = self.cluster.follow(self.job.job_id, echo, lambda line: None)
        if job.status != "SUCCEEDED":
            raise SubmitError(f"{job.job_id} at {self.cluster.address}: {has_ended(job)}")
        return replace(self, job=job)

    def stop(self) -> "SweepSubmission":
        """Stop the sweep cleanly, as Ctrl-C does; submitted again, it resumes."""
        return replace(self, job=self.cluster.stop(self.job))

    def curve(self) -> "Curve":
        """Return the sweep's curve from MLflow so far."""
        from orchestrator.report.sample_efficiency_curve import curve_from_mlflow

        storage, name = open_storage(self.sweep.storage).uri, self.sweep.name
        uri = tracking_uri(self.sweep.mlflow, storage)
        return curve_from_mlflow(uri, name, store_of(storage, name), storage)


def send(
    load: JobSpec, texts: Mapping[str, str], cluster: Cluster, pip: bool = False
) -> tuple[Job, CodeBundle | None]:
    """Start the load with this checkout's code and these files, or find it running.

    Return its job and the bundle that was sent, None if nothing was started. Raises CodeBundleError or
    SubmitError.
    """
    with code_bundle(texts) as sent:
        job, started = cluster.submit(load, sent.folder, pip)
        return job, sent if started else None


def sweep_load(sweep: SweepConfig) -> tuple[JobSpec, dict[str, str]]:
    """Return the load that runs the sweep, and the files it needs in addition to the checkout, text by file
    name.
    """
    text = sweep.to_yaml()
    command = f"{CHECK} && {COMMAND}sweep {SWEEP_FILE}"
    return JobSpec("sweep", sweep.name, open_storage(sweep.storage).uri, digest(text), command), {
        SWEEP_FILE: text
    }


def has_ended(job: Job) -> str:
    """Return how the job ended, and how to continue."""
    last = redact(job.message).splitlines()[0] if job.message else ""
    told = {"SUCCEEDED": "done", "STOPPED": "stopped; run the same submit command to resume"}
    return told.get(job.status) or f"failed; run the same submit command to resume. {last}".rstrip()
