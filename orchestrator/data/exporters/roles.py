"""Episodes that an export holds without their actions: the formats have a column for actions, so it is zero
there, and HAS_ACTION says which values mean something.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.episode_format import Episode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import Storage
from policy.interface import Contract

HAS_ACTION = "has_action"
"""Name of the column, array or attribute that is false where actions are zeros; absent from an export in
which every episode has actions.
"""


def read_episode(
    storage: Storage,
    contract: Contract,
    entry: EpisodeEntry,
    action_free: Collection[str],
    proprio: Sequence[int] | None = None,
) -> Episode:
    """Return an episode with all its pictures. If it is among `action_free` its actions are not read, and
    they and missing proprioception are zeros.

    contract: of the store. proprio: as for `shown_contract`.
    """
    without = entry.episode_id in action_free
    episode = decode_entry(fetch(storage, entry), entry, contract, not without)
    return shown(filled(episode, contract) if without else episode, proprio)


def shown_contract(contract: Contract, proprio: Sequence[int] | None) -> Contract:
    """Return the conventions of an export. proprio: indices of the store's proprioceptive values that it
    holds, in its order; None: all.
    """
    if proprio is None:
        return contract
    return replace(contract, proprio=tuple(contract.proprio[column] for column in proprio))


def shown(episode: Episode, proprio: Sequence[int] | None) -> Episode:
    """Return the episode with the proprioception that an export holds; proprio: as for `shown_contract`."""
    if proprio is None or episode.proprio is None:
        return episode
    return replace(episode, proprio=episode.proprio[:, list(proprio)])


def filled(episode: Episode, contract: Contract) -> Episode:
    """Return the episode with zeros for actions and proprioception that it lacks."""
    action, proprio = (
        np.zeros((episode.length, len(names)), np.float32) if values is None else values
        for values, names in ((episode.action, contract.action), (episode.proprio, contract.proprio))
    )
    return replace(episode, action=action, proprio=proprio)
