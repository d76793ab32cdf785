"""The training run of an external policy, as `orchestrator.training.loop.TrainJob` is that of ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.config.policy_manifest import ExternalPolicy
from orchestrator.config.schema import Train
from orchestrator.data.subset import Subset


@dataclass(frozen=True)
class ExternalJob:
    """Complete description of one training run of an external policy; it holds the policy's files, so that
    every node runs the same.
    """

    arm: Arm
    arm_id: str
    episodes: str
    """URI of the episode store."""
    version: int
    """Version of the episode store: a sweep keeps the one it started with."""
    subset: Subset = field(repr=False)
    """Episodes to learn from, as the driver selected them; `action_free` ones only reach a policy whose
    manifest says so.
    """
    policy: ExternalPolicy
    options: Mapping[str, Any]
    """The policy's own settings, `PolicyManifest.with_options` of the line."""
    train: Train
    storage: str
    """URI of the sweep's storage, which keeps the exported episodes."""
    lock: str = field(default="", repr=False)
    """Resolved requirements of its environment (`external.environment.resolved`); empty: those that the
    folder fixes, or none.
    """
    proprio: tuple[int, ...] | None = None
    """Indices of the store's proprioceptive values that the policy gets; None: all."""
    code: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Content hashes of the driver's files (`sim_workers.checkout`), which a training process must have
    imported; empty: not compared.
    """

    @property
    def fingerprint(self) -> str:
        """Hash of the policy's programs and packages."""
        return self.policy.fingerprint(self.lock)

    @property
    def knobs(self) -> dict[str, Any]:
        """Fields of the sweep file that the policy follows, with their values."""
        chosen = {**self.train.model_dump(mode="json"), "seed": self.arm.seed}
        return {name: chosen[name] for name in ("steps", *self.policy.manifest.understands) if name in chosen}
