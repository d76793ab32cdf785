"""Reference portraits that a pool's workers must match before they may score."""

from typing import Protocol

from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout.worker import Scene


class References(Protocol):
    """The suite's portrait of each scene, which every worker must match: kept for as long as scores are
    compared.
    """

    def get(self, scene: Scene) -> RenderFingerprint | None:
        """Return the scene's portrait; None before the first put()."""
        ...

    def put(self, scene: Scene, portrait: RenderFingerprint) -> RenderFingerprint:
        """Keep the scene's first portrait and return the one that is kept."""
        ...


class ReferencesInMemory(dict[Scene, RenderFingerprint]):
    """References of one pool that shares them with no other process."""

    def put(self, scene: Scene, portrait: RenderFingerprint) -> RenderFingerprint:
        """Keep the scene's first portrait and return the one that is kept."""
        return self.setdefault(scene, portrait)
