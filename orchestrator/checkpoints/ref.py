"""Reference to a checkpoint, which drivers, policy servers and rollout workers exchange."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointRef:
    """Place of a checkpoint, and the fingerprint that it must have there."""

    uri: str
    fingerprint: str = ""
    """Empty: the checkpoint at this place, whichever it is."""

    def __str__(self) -> str:
        return self.uri
