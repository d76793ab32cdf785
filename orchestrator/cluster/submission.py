"""Python API of a sweep on a Ray cluster:
`SweepConfig.load(...).submit("http://head:8265").wait().curve()`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster.code_bundle import CodeBundle, code_bundle
from orchestrator.cluster.ray_jobs import Cluster, Job, JobSpec, SubmitError
from orchestrator.config.policy_manifest import folders_of
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.provenance import CHECKOUT, digest
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
    load: JobSpec, texts: Mapping[str, str | bytes], cluster: Cluster, pip: bool = False
) -> tuple[Job, CodeBundle | None]:
    """Start the load with this checkout's code and these files, or find it running.

    Return its job and the bundle that was sent, None if nothing was started. Raises CodeBundleError or
    SubmitError.
    """
    with code_bundle(texts) as sent:
        job, started = cluster.submit(load, sent.folder, pip)
        return job, sent if started else None


def sweep_load(sweep: SweepConfig, checkout: Path = CHECKOUT) -> tuple[JobSpec, dict[str, str | bytes]]:
    """Return the load that runs the sweep, and the files it needs in addition to the checkout's own, content
    by path: the sweep file, and the folders of its external policies whole, whether git tracks them or not.
    Raises ManifestError for a folder with mistakes or of more than a policy's programs.
    """
    text = sweep.to_yaml()
    command = f"{CHECK} && {COMMAND}sweep {SWEEP_FILE}"
    return JobSpec("sweep", sweep.name, open_storage(sweep.storage).uri, digest(text), command), {
        SWEEP_FILE: text,
        **policy_files(sweep, checkout),
    }


def policy_files(sweep: SweepConfig, checkout: Path) -> dict[str, bytes]:
    """Return the files of the sweep's external policies that are in the checkout, by path relative to it,
    with the folders that they include; exactly those which a sweep on this machine would read.
    """
    found = dict[str, bytes]()
    for line in sweep.lines:
        if line.own or Path(line.policy).is_absolute():
            continue  # an absolute one is on a file system that all nodes share
        if not (checkout / line.policy).resolve().is_relative_to(checkout.resolve()):
            continue
        for folder, files in folders_of(checkout / line.policy).items():
            place = folder.resolve().relative_to(checkout.resolve())
            found |= {(place / name).as_posix(): data for name, data in files.items()}
    return found


def has_ended(job: Job) -> str:
    """Return how the job ended, and how to continue."""
    last = redact(job.message).splitlines()[0] if job.message else ""
    told = {"SUCCEEDED": "done", "STOPPED": "stopped; run the same submit command to resume"}
    return told.get(job.status) or f"failed; run the same submit command to resume. {last}".rstrip()
