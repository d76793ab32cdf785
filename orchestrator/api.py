"""The Python interface to sweeps: `from orchestrator import Sweep`. Methods import their dependencies when
called.
"""

from typing import TYPE_CHECKING

from orchestrator.config.sweep_config import SweepConfig, SweepError

if TYPE_CHECKING:
    from orchestrator.cluster.submission import SweepSubmission
    from orchestrator.planning.plan import Plan


class Sweep(SweepConfig):
    """A sweep file: `Sweep.load(path)`, then `plan()`, or `submit(address)` to a Ray cluster."""

    def plan(self) -> "Plan":
        """Return what the sweep would do and cost. Raises SweepError with every problem if its store cannot
        serve it, and StorageError if its storage cannot be read.
        """
        from orchestrator.planning.plan import make_plan

        return make_plan(self)

    def submit(self, address: str, pip: bool = False) -> "SweepSubmission":
        """Submit the sweep to the Ray cluster with the dashboard `address`, http://head:8265, or find it
        running; finished work is reused.

        pip: have Ray install the pinned packages on every node first. Raises SweepError if the sweep cannot
        work on other machines, SubmitError if the cluster cannot run it or runs it with other settings.
        """
        from orchestrator.cluster.preflight import check_sweep
        from orchestrator.cluster.ray_jobs import Cluster
        from orchestrator.cluster.submission import SweepSubmission, send, sweep_load

        if problems := check_sweep(self):
            raise SweepError(self.name, problems)
        cluster = Cluster(address)
        cluster.check_versions()
        return SweepSubmission(self, cluster, *send(*sweep_load(self), cluster, pip))
