"""Errors that a user can fix. A command prints the message and exits with the error's code; any other
exception is a bug with a traceback.

DemoscaleError
├── CheckpointError       policy.checkpoint_files                  a checkpoint cannot be read
├── CodeBundleError       orchestrator.cluster.code_bundle         files cannot be sent to a cluster
├── CodeChangedError      sim_workers.checkout                     the code changed during a run; exit code 75
├── CommandError          orchestrator.external.command            a command of an external policy fails
├── EpisodeError          orchestrator.data.episode_format         an episode or an episode store is damaged
├── FewRolloutsError      orchestrator.cli.collect_policy          a policy's rollouts end too rarely as asked
├── HeldError             orchestrator.sweep.driver_lease          another driver runs the sweep
├── InfrastructureError   orchestrator.infrastructure              storage, disk or node failed; exit code 75
├── LiberoMissingError    sim_workers.envs.libero                  LIBERO is not installed
├── LostSessionError      policy.interface                         a policy server forgot an episode
├── ManifestError         orchestrator.config.policy_manifest      a policy's folder has mistakes; exit code 2
├── MergeError            orchestrator.data.merged_store           parts of episode stores cannot be merged
├── NoSelectionError      orchestrator.report.best_checkpoint      a sweep has no scenes for choosing alone
├── NotFiniteError        policy.finite                            training diverged
├── PluginError           policy.entry_points                      another package's policy or task fails
├── PolicyRefError        orchestrator.evaluation.policy_ref       a policy's name cannot be resolved
├── ProtocolError         orchestrator.evaluation.scores           a policy cannot be scored on a suite
├── ProtocolsDifferError  orchestrator.report.compared_sweeps      two sweeps cannot be compared; exit code 2
├── PublishedError        orchestrator.report.published            published results: a mistake; exit code 2
├── RayStartError         orchestrator.cluster.ray_runtime         Ray does not start in time; exit code 75
├── RecordTimeoutError    orchestrator.data.parallel_writer        a recording hangs; exit code 75
├── RemoteError           policy.http_protocol                     a policy server fails or answers invalidly
├── RobocasaError         sim_workers.envs.robocasa                RoboCasa is missing or has another version
├── SourceError           orchestrator.data.importers.source_files recordings cannot be read; exit code 2
├── StorageError          orchestrator.storage.base                a folder or bucket cannot be used
├── SubmitError           orchestrator.cluster.ray_jobs            a cluster cannot run a job
├── SubsetError           orchestrator.data.subset                 a store has too few episodes for an arm
├── SweepError            orchestrator.config.sweep_config         a sweep file has mistakes; exit code 2
├── TrackingError         orchestrator.tracking.mlflow_writer      MLflow cannot be used
├── UnfinishedError       orchestrator.sweep.run                   arms of a sweep failed
├── UnknownNeedsError     orchestrator.sweep.retention             it is not known what a sweep needs
└── WeightsError          policy.weights                           pretrained weights cannot be read
"""

from typing import ClassVar

RESUMABLE = 75
"""Exit code, EX_TEMPFAIL of sysexits.h: the same command resumes once the cause is fixed."""


class DemoscaleError(Exception):
    """Base of all errors that a user can fix: a message with the file, field or episode; `hint`: the fix, if
    the message does not name it.
    """

    exit_code: ClassVar[int] = 1
    """Exit code of a command that ends with this error."""

    def __init__(self, message: str = "", hint: str = "") -> None:
        super().__init__(*filter(None, (message, hint)))

    @property
    def message(self) -> str:
        """The sentence; empty if the error was raised without one."""
        return str(self.args[0]) if self.args else ""

    @property
    def hint(self) -> str:
        """What to do about it; empty if the error was raised without a hint."""
        return str(self.args[1]) if len(self.args) > 1 else ""

    def __str__(self) -> str:
        """Return the message, and the hint on a separate line."""
        return "\n".join(map(str, self.args))
