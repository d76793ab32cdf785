"""Does the action follow the imagination: what do actions and success do when a policy reads the imagined
features of another scene?

    python -m experiments.imagined_features               of jobs/claims/success_follows_video.yaml
    python -m experiments.imagined_features --sweep NAME --line LINE --storage FOLDER   of another sweep
    python -m experiments.imagined_features --seeds 0     one seed; finished ones are kept in --folder
    python -m experiments.imagined_features --quick       a policy that learned nothing, as a test

The last checkpoint of every arm of one line is measured.

The action head sees the scene only through feature maps of the video U-Net, besides proprioception. They are
exchanged between the U-Net and the adaptor; proprioception, noise and everything else stay those of the scene
that is played:

    own        as the policy acts
    swapped    all maps are those that the policy imagines for another scene at the same time step
    future     the maps of the present frames stay; those of the predicted frames are of the other scene
    scrambled  the places of all maps, over frames, rows and columns, are permuted
    zeroed     all maps are 0

Success: all scenes are played in each way but the last. Dependence: at every observation of the `own`
episodes, how far the executed actions move, in standard deviations of the demonstrated actions; for scale,
how far they move when only the noise of the actions is drawn again, and how far when only proprioception is
the other scene's. Share: the part of the way from the own actions to those that the policy takes in the other
scene (pictures and proprioception exchanged) that exchanging the imagination alone goes; 0: it has no effect,
1: the action is that of the other scene. Regret: at several observations the simulation is restored and the
rest of the episode is played in another way. The recorded actions are executed from the reset, which restores
physics and controllers bit for bit (checked in every branch), so that the own rest is the episode itself.

What counts as support, said beforehand, for `swapped` and for `future`, each over 3 seeds and 50 scenes:
- The action follows the imagination if all of these hold: the factor of its movement to that by noise alone
  has an interval above 1; the success of `own` minus that of the way has an interval above 0 and a corrected
  p-value below 0.05; the regret of at least one look has an interval above 0, and of none one below.
- It does not follow if the factor's interval is below 1 and the interval of the difference in success lies
  within -0.1 and 0.1. Anything else is no evidence, and so is everything if `own` succeeds in less than 0.1.
`swapped` also exchanges what the features say about the present. So `future` alone decides whether the action
follows what is imagined to come. Intervals are 95 %, with the spread between seeds; p-values are exact
McNemar's for these trained policies, corrected for the three ways after Holm.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click
import numpy as np
from numpy.typing import NDArray

from bench import harness
from experiments import band_coverage
from orchestrator.stats.fixed_sample import (
    blaker,
    hierarchical_draws,
    holm,
    paired_comparison,
)
from orchestrator.stats.sample_efficiency import Estimate, estimated
from policy.interface import ActionChunk, Observation, derived_seed
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Suite

if TYPE_CHECKING:
    from torch import Tensor

    from sim_workers.envs.robosuite import SimEnv

Way = Literal["own", "swapped", "future", "scrambled", "zeroed"]
WAYS: tuple[Way, ...] = get_args(Way)
PLAYED: tuple[Way, ...] = ("own", "swapped", "future", "scrambled")
"""Ways in which whole episodes are played."""
BRANCHED: tuple[Way, ...] = ("swapped", "future")
"""Ways in which the rest of an episode is played from a restored state."""
NOISE, PROPRIO, OTHER = "noise", "proprio", "other"
"""Further queries: other noise of the actions, proprioception of the other scene, everything of it."""
MOVED = (*WAYS[1:], NOISE, PROPRIO)
BOUND = 0.1
"""Difference in success that counts as none, and success below which no difference can be seen."""
CONFIDENT = 0.05


@dataclass(frozen=True)
class Size:
    """Size of the experiment."""

    scenes: int
    horizon: int
    branches: tuple[int, ...]
    """Observations of an episode, from 0, at which its state is restored."""


WHOLE = Size(scenes=50, horizon=80, branches=(3, 6))
QUICK = Size(scenes=2, horizon=12, branches=(1,))


@dataclass(frozen=True)
class Look:
    """One observation of an episode, what the policy answered, and the state of the simulation."""

    seen: Observation
    chunk: ActionChunk
    physics: NDArray[np.float64]


@dataclass(frozen=True)
class Played:
    """An episode."""

    won: bool
    looks: tuple[Look, ...]
    """Those before the first success."""

    def at(self, look: int) -> Observation:
        """Return the observation of a look; the last one if the task was done before."""
        return self.looks[min(look, len(self.looks) - 1)].seen


@dataclass(frozen=True)
class Query:
    """Question to the policy: what it sees, feels and imagines, and from which noise."""

    pictures: Observation
    proprio: Observation
    noise: tuple[int, int]
    """Seeds of the video and of the actions."""
    way: Way = "own"
    future_of: int = -1
    """With `future`: row of the batch whose maps of the predicted frames are taken."""


@dataclass(frozen=True)
class Branch:
    """Success of the rest of the episodes, from the states restored at one observation."""

    look: int
    rest: dict[str, dict[str, bool]]
    """Way -> episode id -> success; without episodes whose task was done before."""


@dataclass(frozen=True)
class Findings:
    """What is measured of one checkpoint."""

    success: dict[str, dict[str, bool]]
    """Way -> episode id -> success."""
    branches: tuple[Branch, ...]
    moved: dict[str, dict[str, float]]
    """Query -> episode id -> root mean square over looks, executed actions and dimensions, in standard
    deviations.
    """
    by_dimension: dict[str, dict[str, float]]
    """Query -> action dimension -> the same over all scenes."""
    share: dict[str, dict[str, float]]
    """Query -> episode id -> share of the way to the other scene's actions."""


class ExchangedPolicy:
    """A checkpoint's policy whose imagined features can be exchanged before the action head reads them."""

    def __init__(self, folder: Path) -> None:
        import torch

        from policy.checkpoint import load
        from policy.model import VideoActionModel
        from policy.normalize import Normalizer

        torch.set_num_threads(1)
        model, card = load(folder)
        if not isinstance(model, VideoActionModel) or model.config.clip.frames_per_view < 2:
            raise click.UsageError(f"{folder}: the policy imagines no future, so that nothing is exchanged")
        assert card.action_stats
        assert card.proprio_stats
        self.contract = card.contract
        self._model = model
        self._sampler = card.config.sampler_on("one_pass")
        self._actions = Normalizer(card.action_stats, card.config.action_normalization)
        self._proprio = Normalizer(card.proprio_stats, "minmax")
        stats = card.action_stats
        self.deviations = np.sqrt(np.array(stats.m2) / stats.count)
        """(A,) standard deviations of the demonstrated actions."""
        frames = model.config.clip.frames_per_view
        pad = model.num_frames - model.num_views * frames
        self._predicted = [pad + v * frames + k for v in range(model.num_views) for k in range(1, frames)]
        self._queries: Sequence[Query] = ()
        model.video.register_forward_hook(self._exchange)

    def act(self, queries: Sequence[Query]) -> list[ActionChunk]:
        """Return one chunk per query."""
        import torch

        self._queries = queries
        cameras = self.contract.cameras
        pictures = np.stack([[one.pictures.images[camera] for camera in cameras] for one in queries])
        proprio = torch.from_numpy(np.stack([one.proprio.proprio for one in queries]))
        _, actions = self._model.sample(
            torch.from_numpy(pictures),
            self._proprio.normalize(proprio),
            [one.pictures.instruction for one in queries],
            [one.noise for one in queries],
            self._sampler,
        )
        return [
            ActionChunk(chunk, self._sampler.execute) for chunk in self._actions.denormalize(actions).numpy()
        ]

    def _exchange(self, _model: object, _inputs: object, output: "tuple[Tensor, list[Tensor]]") -> object:
        clean, maps = output
        return clean, [
            exchanged(one, number, self._queries, self._predicted) for number, one in enumerate(maps)
        ]

    def answer(self, way: Way, seen: Observation, other: Observation) -> ActionChunk:
        """Return the chunk for an observation in a way. other: observation of the other scene."""
        noise = _noise_of(seen)
        if way == "swapped":
            return self.act([Query(other, seen, noise)])[0]
        if way == "future":
            return self.act([Query(seen, seen, noise, way, 1), Query(other, seen, noise)])[0]
        return self.act([Query(seen, seen, noise, way)])[0]

    def probed(self, seen: Observation, other: Observation) -> dict[str, NDArray[np.float64]]:
        """Return the executed actions, (T, A) in standard deviations, of every query at an observation."""
        noise = _noise_of(seen)
        queries = {
            "own": Query(seen, seen, noise),
            "swapped": Query(other, seen, noise),
            "future": Query(seen, seen, noise, "future", 1),
            "scrambled": Query(seen, seen, noise, "scrambled"),
            "zeroed": Query(seen, seen, noise, "zeroed"),
            NOISE: Query(seen, seen, (noise[0], derived_seed(noise[1], 1))),
            PROPRIO: Query(seen, other, noise),
            OTHER: Query(other, other, noise),
        }
        chunks = self.act(list(queries.values()))
        scale = np.where(self.varies, self.deviations, 1.0)
        return {
            name: np.asarray(chunk.actions[: chunk.execute] / scale, np.float64)
            for name, chunk in zip(queries, chunks, strict=True)
        }

    @property
    def varies(self) -> NDArray[np.bool_]:
        """(A,) whether a dimension of the action changes in the demonstrations."""
        from policy.feature_stats import CONSTANT

        return np.asarray(self.deviations > CONSTANT)


def exchanged(
    features: "Tensor", number: int, queries: Sequence[Query], predicted: Sequence[int]
) -> "Tensor":
    """Return a (B, F, c, h, w) feature map, the `number`-th of the video model, as the queries of its rows
    exchange it. predicted: places of the predicted frames among the F.
    """
    import torch

    out = features.clone()
    for row, query in enumerate(queries):
        if query.way == "future":
            out[row, predicted] = features[query.future_of, predicted]
        elif query.way == "scrambled":
            own = features[row].transpose(0, 1)  # (c, F, h, w)
            order = np.random.default_rng([*query.noise, number]).permutation(own[0].numel())
            places = own.flatten(1)[:, torch.from_numpy(order)]
            out[row] = places.unflatten(1, own.shape[1:]).transpose(0, 1)
        elif query.way == "zeroed":
            out[row] = 0
    return out


def _noise_of(seen: Observation) -> tuple[int, int]:
    return seen.noise_seed, derived_seed(seen.noise_seed, 1)  # as policy.inference draws them


# -- playing -------------------------------------------------------------------------------------------------


def play(
    env: "SimEnv",
    policy: ExchangedPolicy,
    spec: EpisodeSpec,
    rules: EpisodeRules,
    way: Way,
    other: Played | None,
    recorded: Played | None = None,
    branch: int = 0,
) -> Played:
    """Play an episode in a way. other: episode of the other scene; None only for `own`. recorded, branch: the
    chunks of this episode are executed up to that look, where the way begins.

    Raises RuntimeError if the restored state differs from the recorded one.
    """
    from sim_workers.rollout.episode import run_episode

    looks: list[Look] = []

    def act(seen: Observation) -> ActionChunk:
        look, physics = len(looks), env.physics.copy()
        if recorded and look <= branch and not np.array_equal(physics, recorded.looks[look].physics):
            raise RuntimeError(f"{spec.episode_id}: the state at observation {look} is not the recorded one")
        if recorded and look < branch:
            chunk = recorded.looks[look].chunk
        else:
            chunk = policy.answer(way, seen, other.at(look) if other else seen)
        looks.append(Look(seen, chunk, physics))
        return chunk

    outcome = run_episode(env, spec, rules, act)
    if outcome.result == "error":
        raise RuntimeError(f"{spec.episode_id}: {outcome.message}")
    end = outcome.steps if outcome.first_success is None else outcome.first_success
    return Played(outcome.result == "success", tuple(one for one in looks if one.seen.step < max(1, end)))


def measured(policy: ExchangedPolicy, env: "SimEnv", size: Size) -> Findings:
    """Play and query a checkpoint's policy on all scenes."""
    suite = Suite(("Lift",), size.scenes, EpisodeRules(size.horizon))
    specs = sorted(suite.episode_list())
    played = {spec: play(env, policy, spec, suite.rules, "own", None) for spec in specs}
    others = dict(zip(specs, specs[len(specs) // 2 :] + specs[: len(specs) // 2], strict=True))
    success = {"own": {spec.episode_id: played[spec].won for spec in specs}}
    for way in PLAYED[1:]:
        success[way] = {
            spec.episode_id: play(env, policy, spec, suite.rules, way, played[others[spec]]).won
            for spec in specs
        }
    branches = []
    for look in size.branches:
        running = [spec for spec in specs if look < len(played[spec].looks)]
        if running:  # restoring is exact: the own rest ends as the episode did
            again = play(env, policy, running[0], suite.rules, "own", None, played[running[0]], look)
            assert again.won == played[running[0]].won
        rest = {"own": {spec.episode_id: played[spec].won for spec in running}}
        for way in BRANCHED:
            rest[way] = {
                spec.episode_id: play(
                    env, policy, spec, suite.rules, way, played[others[spec]], played[spec], look
                ).won
                for spec in running
            }
        branches.append(Branch(look, rest))
    return Findings(success, tuple(branches), *_dependence(policy, played, others))


def _dependence(
    policy: ExchangedPolicy,
    played: Mapping[EpisodeSpec, Played],
    others: Mapping[EpisodeSpec, EpisodeSpec],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return `Findings.moved`, `by_dimension` and `share`."""
    varies = policy.varies
    names = [name for name, own in zip(policy.contract.action, varies, strict=True) if own]
    moved: dict[str, dict[str, float]] = {name: {} for name in MOVED}
    share: dict[str, dict[str, float]] = {name: {} for name in (*WAYS[1:], PROPRIO)}
    squares: dict[str, list[NDArray[np.float64]]] = {name: [] for name in MOVED}
    for spec, episode in played.items():
        steps: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*MOVED, OTHER)}
        for look, one in enumerate(episode.looks):
            answers = policy.probed(one.seen, played[others[spec]].at(look))
            for name, kept in steps.items():
                kept.append((answers[name] - answers["own"])[:, varies])
        apart = {name: np.stack(kept) for name, kept in steps.items()}  # (looks, T, dimensions)
        for name in MOVED:
            squares[name].append((apart[name] ** 2).mean((0, 1)))
            moved[name][spec.episode_id] = float(np.sqrt(squares[name][-1].mean()))
        for name in share:
            going = (apart[name] * apart[OTHER]).sum() / max((apart[OTHER] ** 2).sum(), 1e-12)
            share[name][spec.episode_id] = float(going)
    by_dimension = {
        name: dict(zip(names, np.sqrt(np.mean(squares[name], 0)).tolist(), strict=True)) for name in MOVED
    }
    return moved, by_dimension, share


# -- what it says --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What is found of one way."""

    own: float
    """Success of `own`."""
    difference: Estimate
    """Success of `own` minus that of the way."""
    p_corrected: float
    factor: Estimate
    """Movement of the actions over that by noise alone."""
    share: Estimate
    regret: dict[int, Estimate] = field(default_factory=dict)
    """Look -> success of the own rest minus that of the way's."""

    @property
    def word(self) -> str:
        """What the rule of this module's docstring says of it."""
        lows = [one.interval.low for one in self.regret.values()]
        highs = [one.interval.high for one in self.regret.values()]
        drop = self.difference.interval
        regretted = any(low > 0 for low in lows) and all(high >= 0 for high in highs)
        if self.own < BOUND:
            return "no evidence, since success is at the floor"
        if self.factor.interval.low > 1 and drop.low > 0 and self.p_corrected < CONFIDENT and regretted:
            return "the action follows it"
        if self.factor.interval.high < 1 and drop.low >= -BOUND and drop.high <= BOUND:
            return "the action does not follow it"
        return "no evidence"


def verdicts(found: Sequence[Findings]) -> dict[str, Verdict]:
    """Return the verdict on every way that is played but `own`, from the findings of all seeds."""
    scenes = sorted(found[0].success["own"])
    success = _drawn([[one.success[way] for one in found] for way in PLAYED], scenes)
    moved = _drawn([[one.moved[name] for one in found] for name in MOVED], scenes)
    pooled = [
        {f"{seed}/{scene}": won for seed, one in enumerate(found) for scene, won in one.success[way].items()}
        for way in PLAYED
    ]
    p_values = holm([paired_comparison(pooled[0], other).p_value for other in pooled[1:]])
    shares = _drawn([[one.share[way] for one in found] for way in PLAYED[1:]], scenes)
    noise = MOVED.index(NOISE)
    answers = dict[str, Verdict]()
    for number, way in enumerate(PLAYED[1:], 1):
        place = MOVED.index(way)
        answers[way] = Verdict(
            float(success.means[0]),
            _estimate(success, lambda rates, n=number: rates[..., 0] - rates[..., n]),  # type: ignore[misc]
            p_values[number - 1],
            _estimate(moved, lambda far, n=place: far[..., n] / np.maximum(far[..., noise], 1e-12)),  # type: ignore[misc]
            _estimate(shares, lambda part, n=number - 1: part[..., n]),  # type: ignore[misc]
            _regret(found, way, scenes) if way in BRANCHED else {},
        )
    return answers


def _regret(found: Sequence[Findings], way: str, scenes: Sequence[str]) -> dict[int, Estimate]:
    answers = {}
    for branches in zip(*(one.branches for one in found), strict=True):
        cells = [[branch.rest[kind] for branch in branches] for kind in ("own", way)]
        if all(cells[0]):
            drawn = _drawn(cells, scenes)
            answers[branches[0].look] = _estimate(drawn, lambda rates: rates[..., 0] - rates[..., 1])
    return answers


@dataclass(frozen=True)
class _Drawn:
    """Means (C,) of C cells, and draws (B, C) of them."""

    means: NDArray[np.float64]
    draws: NDArray[np.float64]


def _drawn(cells: Sequence[Sequence[Mapping[str, float]]], scenes: Sequence[str]) -> _Drawn:
    """Return means and draws over seeds and scenes. cells: for each, episode id -> value of every seed."""
    values = np.array(
        [[[seed.get(scene, np.nan) for scene in scenes] for seed in cell] for cell in cells], float
    )
    draws = hierarchical_draws(values, np.zeros(len(scenes), np.int64), recipes=values.shape[1] > 1)
    return _Drawn(np.nanmean(np.nanmean(values, 2), 1), draws)


def _estimate(drawn: _Drawn, of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Estimate:
    return estimated(float(of(drawn.means)), list(of(drawn.draws)))


def _shown(one: Estimate) -> str:
    low, high = one.interval
    return f"{one.value:+.2f} [{low:+.2f}, {high:+.2f}]"


# -- the command ---------------------------------------------------------------------------------------------


def findings_of(checkpoint: Path, kept: Path, size: Size) -> Findings:
    """Return the findings of a checkpoint; measure them if `kept` does not exist."""
    if not kept.exists():
        from sim_workers.envs.robosuite import SimEnv

        policy = ExchangedPolicy(checkpoint)
        env = SimEnv("Lift", policy.contract)
        found = measured(policy, env, size)
        env.close()
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, suffix=".part", delete=False) as part:
            json.dump(asdict(found), part)
        Path(part.name).replace(kept)
    told = json.loads(kept.read_text())
    return Findings(**{**told, "branches": tuple(Branch(**one) for one in told["branches"])})


@click.command()
@click.option("--quick", is_flag=True, help="A short look at a policy that learned nothing.")
@click.option("--sweep", default="success-follows-video", show_default=True, help="Name of the sweep.")
@click.option("--line", default="pretrained_video", show_default=True, help="Line whose arms are played.")
@click.option("--storage", default="runs", show_default=True, help="Where the sweep keeps its results.")
@click.option("--seeds", type=int, multiple=True, help="Seeds of the arms; all by default.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data/imagined_features"),
    show_default=True,
    help="Where the findings of finished seeds are kept.",
)
def main(quick: bool, sweep: str, line: str, storage: str, seeds: tuple[int, ...], folder: Path) -> None:
    """Print success, dependence, regret and verdicts and, last, one line of JSON."""
    if quick:
        with tempfile.TemporaryDirectory() as name:
            checkpoint = band_coverage.trained(0, band_coverage.QUICK, Path(name))
            return show([findings_of(checkpoint, Path(name) / "findings.json", QUICK)], QUICK, quick)
    from orchestrator.checkpoints.reader import open_checkpoint
    from orchestrator.sweep.state import SweepState, last_checkpoint

    arms = [one for one in SweepState.named(sweep, storage).arms().values() if one.kind == line]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for arm in sorted(arms):
        if seeds and arm.seed not in seeds:
            continue
        uri, _ = last_checkpoint(sweep, arm.name, storage)
        with open_checkpoint(uri) as checkpoint:
            found.append(findings_of(checkpoint, folder / f"{sweep}-{arm.name}.json", WHOLE))
    if not found:
        raise click.UsageError(f"--line {line}: the sweep {sweep} has no such arm with a checkpoint")
    show(found, WHOLE, quick)


def show(found: Sequence[Findings], size: Size, quick: bool) -> None:
    """Print the tables, the verdicts and the last line."""
    said = verdicts(found)
    print(f"{len(found)} seeds, {size.scenes} scenes of Lift\n")
    print(f"{'imagined features':<20}{'success':>10}{'95 %, episodes':>18}   own minus way, p corrected")
    for way in PLAYED:
        won = [one.success[way] for one in found]
        wins, episodes = sum(sum(own.values()) for own in won), sum(map(len, won))
        low, high = blaker(wins, episodes)
        text = f"{_shown(said[way].difference)}, p {said[way].p_corrected:.3f}" if way in said else ""
        print(f"{way:<20}{f'{wins}/{episodes}':>10}{f'[{low:.2f}, {high:.2f}]':>18}   {text}")
    print(f"\n{'actions move, sd':<44}" + "".join(f"{name:>11}" for name in MOVED))
    every = [np.mean([np.mean([*one.moved[name].values()]) for one in found]) for name in MOVED]
    print(f"{'all dimensions':<44}" + "".join(f"{value:>11.2f}" for value in every))
    for dimension in found[0].by_dimension[NOISE]:
        far = [np.mean([one.by_dimension[name][dimension] for one in found]) for name in MOVED]
        print(f"{dimension:<44}" + "".join(f"{value:>11.2f}" for value in far))
    print(f"\n{'exchanged':<12}{'moves, times noise':>24}{'share of the way':>26}")
    for name, one in said.items():
        share = _shown(one.share) if name in BRANCHED else ""
        print(f"{name:<12}{_shown(one.factor):>24}{share:>26}")
    print("\nregret: success of the own rest minus that of the way, from restored states")
    for way in BRANCHED:
        for look, lost in said[way].regret.items():
            states = sum(len(b.rest["own"]) for seed in found for b in seed.branches if b.look == look)
            print(f"{way:<12}observation {look:<4}{states:>4} states  {_shown(lost)}")
    for way in BRANCHED:
        print(f"\n{way}: {said[way].word}", end="")
    print()
    answer: dict[str, object] = {"seeds": len(found), "scenes": size.scenes}
    for way in PLAYED:
        rates = [np.mean([*one.success[way].values()]) for one in found]
        answer[f"success_{way}"] = float(np.mean(rates))
    for way in BRANCHED:
        one = said[way]
        answer |= {
            f"{way}_lost": one.difference.value,
            f"{way}_lost_low": one.difference.interval.low,
            f"{way}_lost_high": one.difference.interval.high,
            f"{way}_factor": one.factor.value,
            f"{way}_share": one.share.value,
            f"{way}_verdict": one.word,
        }
    harness.print_answer("imagined_features", answer, quick)


if __name__ == "__main__":
    harness.run(main)
