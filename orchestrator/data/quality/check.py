"""Quality check of a store: each episode is fetched and decoded once, in a thread, and reduced to its traits;
findings come from comparing the traits of all episodes with each other and with `Limits`. Nothing is written.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry, Manifest, in_tuples
from orchestrator.data.quality.episode_rules import judge
from orchestrator.data.quality.findings import Finding
from orchestrator.data.quality.limits import Limits
from orchestrator.data.quality.traits import Scale, Traits, examine
from orchestrator.data.store_summary import merged, one_line
from orchestrator.storage.base import Storage, StorageError


def scales_of(manifest: Manifest) -> dict[str, Scale]:
    """Return the ranges of actions and proprioception over the whole store, from the manifest alone."""
    contract = manifest.contract
    found = {
        name: Scale.of(merged(manifest, name), getattr(contract, name)) for name in ("action", "proprio")
    }
    return {name: scale for name, scale in found.items() if scale is not None and getattr(contract, name)}


def measure_all(
    storage: Storage, entries: Iterable[EpisodeEntry], scales: dict[str, Scale], limits: Limits, workers: int
) -> Iterator[Traits]:
    """Fetch, decode and measure every episode once, in threads, and yield its traits in order.

    An episode that cannot be read or decoded yields traits with a `problem`. Raises StorageError.
    """

    def one(entry: EpisodeEntry) -> Traits:
        started = time.thread_time()
        try:
            episode = decode(fetch(storage, entry), entry.cameras, with_actions=entry.labelled)
            decoded = time.thread_time()
            traits = examine(episode, entry, scales, limits)
        except EpisodeError as error:
            return Traits(entry, problem=str(error))
        except StorageError:  # it concerns all episodes
            raise
        except Exception as error:  # any error of a decoder concerns this episode alone
            return Traits(
                entry,
                problem=(
                    f"episode {entry.episode_id} cannot be decoded ({type(error).__name__}:"
                    f" {one_line(str(error))})"
                ),
            )
        traits.seconds = decoded - started, time.thread_time() - decoded
        return traits

    with ThreadPoolExecutor(workers) as pool:
        for some in in_tuples(entries, 16 * workers):  # in batches: a store may be larger than memory
            yield from pool.map(one, some)


@dataclass(frozen=True)
class Checked:
    """Findings and cost of a check."""

    findings: list[Finding]
    episodes: int
    frames: int
    successes: dict[str, int]
    """Number of episodes by success flag: `succeeded`, `failed`, `unknown`."""
    decoding_s: float
    """CPU seconds of decoding."""
    measuring_s: float
    """CPU seconds of measuring and comparing, in addition to decoding."""


def check(
    storage: Storage,
    manifest: Manifest,
    entries: Iterable[EpisodeEntry],
    limits: Limits | None = None,
    workers: int = 1,
    ignored: Iterable[str] = (),
    done: Callable[[], None] = lambda: None,
) -> Checked:
    """Check some episodes of a store for problems.

    Args:
        storage: storage of the episodes; it is only read.
        manifest: version of the store that the episodes belong to; ranges of dimensions are those of all its
            episodes.
        entries: episodes to check.
        limits: thresholds of the findings; None for the defaults.
        workers: number of threads.
        ignored: kinds of findings, of `KINDS`, that are left out.
        done: called after each episode.

    Raises StorageError if the storage fails.
    """
    limits, scales, seen = limits or Limits(), scales_of(manifest), []
    for traits in measure_all(storage, entries, scales, limits, workers):
        seen.append(traits)
        done()
    started = time.thread_time()
    hidden = set(ignored)
    findings = [finding for finding in judge(seen, scales, limits) if finding.kind not in hidden]
    judged = time.thread_time() - started
    words = {True: "succeeded", False: "failed", None: "unknown"}
    flags = Counter(words[traits.entry.success] for traits in seen)
    decoding, measuring = (sum(traits.seconds[i] for traits in seen) for i in (0, 1))
    frames = sum(traits.entry.length for traits in seen)
    return Checked(
        findings=findings,
        episodes=len(seen),
        frames=frames,
        successes={word: flags[word] for word in words.values()},
        decoding_s=decoding,
        measuring_s=measuring + judged,
    )
