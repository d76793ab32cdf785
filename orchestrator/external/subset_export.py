"""The episodes of an arm in the format that an external policy reads, written once for all arms and policies
that learn from the same ones.

    exports/<digest>/<content>/...       the data set, in the sweep's storage
    exports/<digest>/complete.json       claimed last: names <content> and the size and hash of every file

The digest is that of the episodes' contents, their roles, the conventions and the format. A node keeps a
copy, which training commands read and must not change.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoints.external_card import StoredFile, files_of, store
from orchestrator.checkpoints.node_cache import cached_folder, user_folder
from orchestrator.config.policy_manifest import DataFormat
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.exporters.roles import shown_contract
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.merged_store import weights_of
from orchestrator.data.subset import Subset
from orchestrator.provenance import digest
from orchestrator.storage.base import NoObject, Storage
from orchestrator.storage.notes import read_json_object

VERSION = 1
"""Version of the exports; to be raised with every change of what the exporters write."""
DATA: dict[DataFormat, str] = {
    "lerobot_v3": "lerobot",
    "robomimic_hdf5": "demonstrations.hdf5",
    "diffusion_policy_zarr": "replay_buffer.zarr",
}
"""Name of the data set: of its folder, or of its only file."""
MARKER = "complete.json"
EXPORT = "export.json"
"""File of a copy on a node: what it holds."""


@dataclass(frozen=True)
class Export:
    """A data set on this node."""

    digest: str
    folder: Path
    """Copy on this node; to be touched by a process that uses it for long."""
    data: Path
    """The data set: a folder, or the file of robomimic."""
    episodes: int
    frames: int
    bytes_read: int
    """Bytes that this process read from storages to make or fetch the copy; 0 if the node had it."""


def chosen(
    manifest: Manifest, subset: Subset, action_free: bool
) -> tuple[list[EpisodeEntry], frozenset[str]]:
    """Return the episodes that a policy learns from, demos first, and the ids of those without actions.

    action_free: whether it can use episodes without actions; without it, it gets the demos alone.
    """
    ids = subset.action_free if action_free else ()
    return manifest.select((*subset.demos, *ids)), frozenset(ids)


def sample_weights(manifest: Manifest, subset: Subset, action_free: bool) -> list[float]:
    """Return the share of training samples that comes from each episode of a data set, in its order; empty if
    the manifest's stores have no weights.

    Demos, and action-free episodes, sum up to 1 each. A store's share is in proportion to its weight, among
    the stores that have such episodes, and that of its episodes to their frames.
    """
    if not (weights := dict(weights_of(manifest))):
        return []
    entries, without = chosen(manifest, subset, action_free)
    groups = [
        (entry.episode_id in without, next(name for name in weights if entry.episode_id.startswith(name)))
        for entry in entries
    ]
    frames = Counter[tuple[bool, str]]()
    for group, entry in zip(groups, entries, strict=True):
        frames[group] += entry.length
    totals = {kind: sum(weights[name] for other, name in frames if other is kind) for kind, _ in frames}
    return [
        weights[group[1]] / totals[group[0]] * entry.length / frames[group]
        for group, entry in zip(groups, entries, strict=True)
    ]


def export_digest(
    manifest: Manifest,
    subset: Subset,
    layout: DataFormat,
    action_free: bool,
    proprio: Sequence[int] | None = None,
) -> str:
    """Return what identifies the data set: equal for arms with the same episodes, whichever store or version
    they are from. proprio: as for `exported`.
    """
    entries, without = chosen(manifest, subset, action_free)
    episodes = [[entry.episode_id, entry.sha256, entry.episode_id in without] for entry in entries]
    contract = shown_contract(manifest.contract, proprio)
    return digest([VERSION, layout, contract.to_json(), episodes])


def exported(
    episodes: Storage,
    manifest: Manifest,
    subset: Subset,
    layout: DataFormat,
    action_free: bool,
    keeps: Storage,
    root: Path | None = None,
    proprio: Sequence[int] | None = None,
) -> Export:
    """Return the data set on this node: copied from the sweep's storage `keeps`, or written and stored there.

    episodes: the episode store. root: folder of the copies, that of the node by default. proprio: indices of
    the store's proprioceptive values that the data set has; None: all. Raises EpisodeError for episodes
    that are damaged or that the format cannot express, and for a damaged export; StorageError.
    """
    name, read = export_digest(manifest, subset, layout, action_free, proprio), 0

    def fill(folder: Path) -> None:
        nonlocal read
        folder.mkdir(parents=True)
        if not (found := _fetch(keeps, name, folder)):
            entries, without = chosen(manifest, subset, action_free)
            _write(episodes, manifest, entries, without, layout, folder, proprio)
            _keep(keeps, name, folder)
            found = sum(entry.nbytes for entry in entries)
        for path in filter(Path.is_file, folder.rglob("*")):
            path.chmod(0o444)  # arms share it
        read = found

    folder = cached_folder(name, fill, root or user_folder("exports"))
    said = json.loads((folder / EXPORT).read_text())
    return Export(name, folder, folder / DATA[layout], said["episodes"], said["frames"], read)


def _write(
    storage: Storage,
    manifest: Manifest,
    entries: list[EpisodeEntry],
    without: frozenset[str],
    layout: DataFormat,
    folder: Path,
    proprio: Sequence[int] | None,
) -> None:
    place, contract = folder / DATA[layout], manifest.contract
    # each format's packages are imported where it is written
    if layout == "lerobot_v3":
        from orchestrator.data.exporters.lerobot_v3 import check_rate
        from orchestrator.data.exporters.lerobot_v3 import export as export_lerobot

        check_rate(storage, contract)
        written = export_lerobot(storage, contract, entries, place, without, proprio)
    elif layout == "robomimic_hdf5":
        from orchestrator.data.exporters.robomimic import export_robomimic

        written = export_robomimic(storage, contract, entries, place, True, without, proprio)
    else:
        from orchestrator.data.exporters.diffusion_policy_zarr import export_zarr

        written = export_zarr(storage, contract, entries, place, without, proprio)
    with closing(written):
        frames = sum(entry.length for entry in written)
    (folder / EXPORT).write_text(json.dumps({"episodes": len(entries), "frames": frames}))


def _keep(keeps: Storage, name: str, folder: Path) -> None:
    files = {path: vars(stored) for path, stored in files_of(folder).items()}
    content = digest(files)
    store(folder, keeps, f"exports/{name}/{content}/", last=EXPORT)
    marker = {"content": content, "files": files}
    keeps.put_if_absent(f"exports/{name}/{MARKER}", json.dumps(marker, indent=1).encode())


def _fetch(keeps: Storage, name: str, folder: Path) -> int:
    """Copy a stored data set into the folder; return its bytes, 0 if there is none."""
    try:
        marker = read_json_object(keeps, f"exports/{name}/{MARKER}")
    except NoObject:
        return 0
    place, total = f"exports/{name}/{marker['content']}", 0
    for path, fields in marker["files"].items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = keeps.get(f"{place}/{path}")
        except NoObject:
            data = b""
        target.write_bytes(data)
        if StoredFile.of(target) != StoredFile(**fields):
            raise EpisodeError(
                f"{keeps.uri}: the exported episodes are damaged ({place}/{path}); remove exports/{name}, and"
                " they are exported again"
            )
        total += len(data)
    return total
