"""`build_items`: the list of a source's episodes, made from a description of each."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.data.importers.base import EpisodeInfo, Item, RawEpisode, Source, SourceError, SourceInfo
from orchestrator.data.importers.items import MOST_BYTES, Listing, build_items
from policy.interface import Contract

CONTRACT = Contract(("front",), (64, 64), "imported", (), ("x", "grip"), 10.0, "unknown")
INFO = SourceInfo(
    format="films",
    name="recorded",
    label="lift",
    cameras={"cam0": "front"},
    stored="upside-down",
    native_hz=20.0,
    labelled=True,
    contract=CONTRACT,
)
EPISODE = EpisodeInfo(
    rows=21, picture_size=(64, 64), task="Lift", instruction="lift it", content=("a",), largest_action=0.5
)


def listed(described: Mapping[str, EpisodeInfo | Exception]) -> Listing:
    """Return the listing of episodes that are described so, or raise so."""

    def describe(name: str) -> EpisodeInfo:
        if isinstance(found := described[name], Exception):
            raise found
        return found

    return build_items(INFO, dict.fromkeys(described, 7), describe)


def test_build_items_states_length_in_the_store_and_origin() -> None:
    [item] = listed({"episode_0": EPISODE}).items
    assert (item.episode_id, item.length, item.labelled) == ("lift-episode_0", 11, True)
    origin, content = item.origin.rsplit("; content ", 1)
    assert origin == "recorded, episode_0; stored upside-down, turned upright; resampled from 20 per second"
    assert len(content) == 12


def test_build_items_uses_the_rate_and_size_of_the_episode() -> None:
    [item] = listed({"a": replace(EPISODE, hz=5.0, picture_size=(48, 64), labelled=False)}).items
    assert (item.length, item.labelled) == (41, False)
    assert "; scaled from 48x64; resampled from 5 per second; " in item.origin


def test_build_items_keeps_undescribed_episodes_with_their_problem() -> None:
    listing = listed(
        {
            "a": EPISODE,
            "b": ValueError("a value is missing"),
            "c": KeyError("action"),
            "d": replace(EPISODE, rows=1 + MOST_BYTES // 64 // 64, largest_action=9.0, instruction=""),
        }
    )
    assert [item.name for item in listing.items] == ["a", "b", "c", "d"]
    assert listing.problems[:2] == [
        "recorded, b: a value is missing; left out",
        "recorded, c: it cannot be read (KeyError: 'action'); left out",
    ]
    assert listing.problems[2].startswith("recorded, d: its pictures would take 12 GiB of memory")
    assert [item.length for item in listing.items] == [11, 7, 7, 7]
    assert listing.largest_action == 0.5, "only of episodes that are imported"
    assert listing.instructed


def test_build_items_gives_ambiguous_names_different_ids() -> None:
    ids = [item.episode_id for item in listed({"a/b": EPISODE, "a-b": EPISODE, "c": EPISODE}).items]
    assert len(set(ids)) == 3
    assert all(episode_id.startswith("lift-a-b-") for episode_id in ids[:2])
    assert ids[2] == "lift-c"


def test_build_items_hashes_content_regardless_of_names() -> None:
    one, other, third = listed({"a": EPISODE, "b": EPISODE, "c": replace(EPISODE, content=("b",))}).items
    assert one.origin[-12:] == other.origin[-12:] != third.origin[-12:]


class Reader:
    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        return RawEpisode(frames={"cam0": np.zeros((1, 64, 64, 3), np.uint8)}, rows=1, hz=10.0)

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, np.ndarray]:
        return {}


def test_source_refuses_to_read_an_unusable_episode() -> None:
    listing = listed({"a": ValueError("it is empty")})
    source = Source(info=INFO, reader=Reader(), items=listing.items, problems=listing.problems, questions=[])
    for read in (source.read, source.first_pictures):
        with pytest.raises(SourceError, match="recorded, a: it is empty; left out"):
            read(source.items[0])
