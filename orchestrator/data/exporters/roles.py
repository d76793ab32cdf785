"""Episodes that an export holds without their actions: the formats have a column for actions, so it is zero
there, and HAS_ACTION says which values mean something.
"""

from collections.abc import Collection
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
    storage: Storage, contract: Contract, entry: EpisodeEntry, action_free: Collection[str]
) -> Episode:
    """Return an episode with all its pictures. If it is among `action_free` its actions are not read, and
    they and missing proprioception are zeros.
    """
    without = entry.episode_id in action_free
    episode = decode_entry(fetch(storage, entry), entry, contract, not without)
    return filled(episode, contract) if without else episode


def filled(episode: Episode, contract: Contract) -> Episode:
    """Return the episode with zeros for actions and proprioception that it lacks."""
    action, proprio = (
        np.zeros((episode.length, len(names)), np.float32) if values is None else values
        for values, names in ((episode.action, contract.action), (episode.proprio, contract.proprio))
    )
    return replace(episode, action=action, proprio=proprio)
