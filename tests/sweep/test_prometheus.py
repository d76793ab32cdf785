"""Prometheus metrics: scraped from a real Ray while a sweep runs, queried by the dashboard, inert without
Ray.
"""

import json
import os
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import CHECKOUT, run
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import prometheus as metrics
from orchestrator.prometheus import METRICS, Metric
from orchestrator.testing.fake_policy_server import PolicyServerWithoutCheckpoints
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import simulated_outcome
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.testing.rollout_pool import FakeRolloutPool
from policy.interface import Observation
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.worker import RolloutJob
from sweep_runs import Run, sweep

DASHBOARD = json.loads((CHECKOUT / "deploy/grafana/demoscale.json").read_text())
BY_NAME = {f"ray_{metric.name}": metric for metric in METRICS}
PATIENCE_S = 120.0
"""Ray exports metrics every ten seconds, and processes are slow on a busy machine."""


# -- what is declared, and what the dashboard asks for -------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_name_follows_prometheus_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"demoscale_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "Counter")
    stem = metric.name.removesuffix("_total")
    if metric.unit in ("seconds", "ratio"):
        assert stem.endswith(f"_{metric.unit}"), "base units, and in the name"
    assert not re.search(r"_(ms|milliseconds|minutes|hours|percent|mib|gib)$", stem)
    assert metric.description
    assert bool(metric.bounds) == (metric.kind == "Histogram")
    assert sorted(metric.bounds) == [*metric.bounds]


def test_metrics_list_has_every_declared_metric_once() -> None:
    declared = {metric.name for metric in vars(metrics).values() if isinstance(metric, Metric)}
    assert sorted(declared) == sorted(metric.name for metric in METRICS)


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def queries() -> Iterator[str]:
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def test_dashboard_queries_exactly_the_declared_metrics() -> None:
    asked = defaultdict(set)
    for query in queries():
        for name, selector, window in re.findall(r"(ray_\w+)(\{[^}]*\})(\[[^\]]*\])?", query):
            family = name if name in BY_NAME else name.removesuffix("_bucket")
            assert family in BY_NAME, f"{name} is not declared"
            assert (name != family) == (BY_NAME[family].kind == "Histogram"), (
                f"{name}: buckets are asked of histograms alone"
            )
            assert bool(window) == (BY_NAME[family].kind == "Histogram" or "rate(" in query), (
                "a rate has a window"
            )
            assert selector == '{sweep=~"$sweep"}'
            asked[family].add(query)
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert {label.strip() for label in labels.split(",")} <= {"sweep", "le"}.union(
                *(metric.tags for metric in METRICS)
            )
        assert len(re.findall(r"ray_\w+", query)) == len(re.findall(r"ray_\w+\{", query)), (
            "every metric is chosen by sweep"
        )
    assert asked.keys() == BY_NAME.keys()


def test_dashboard_is_importable_into_any_grafana() -> None:
    """It names no data source and no sweep: both are variables."""
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert re.fullmatch(r"label_values\((\w+), sweep\)", variables["sweep"]["query"]["query"])[1] in BY_NAME  # type: ignore[index]
    for owner in [*panels(), variables["sweep"]]:
        assert owner["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [(x, y) for panel in every for x in columns(panel) for y in rows(panel)]
    assert len(cells) == len(set(cells)), "no panel lies on another"
    assert all(0 <= x < 24 for x, _ in cells)


def columns(panel: dict[str, Any]) -> range:
    place = panel["gridPos"]
    return range(place["x"], place["x"] + place["w"])


def rows(panel: dict[str, Any]) -> range:
    place = panel["gridPos"]
    return range(place["y"], place["y"] + place["h"])


def test_metrics_without_ray_do_nothing_and_import_no_ray() -> None:
    program = (
        "import sys; from orchestrator.prometheus import METRICS; [metric.record(1.0, 'lift') for metric in"
        " METRICS]; print('ray' in sys.modules)"
    )
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


# -- the real thing ------------------------------------------------------------------------------------------


class Scraped:
    """The node's metrics endpoint."""

    def __init__(self, sweep: str) -> None:
        import ray

        (node,) = [node for node in ray.nodes() if node["Alive"]]
        self._url, self._sweep = (
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
            sweep,
        )

    def families(self) -> dict[str, Family]:
        """Return the project's metric families by their queried name."""
        text = urlopen(self._url, timeout=30).read().decode()
        found = text_string_to_metric_families(text)
        return {
            name: family
            for family in found
            if (name := family.name + ("_total" if family.type == "counter" else "")) in BY_NAME
        }

    def values(self, name: str, *tags: str) -> dict[tuple[str, ...], float]:
        """Return the sweep's values by these tags, summed over all other tags."""
        sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        family = self.families().get(name.removesuffix("_count"))
        for sample in family.samples if family else ():
            if sample.name == name and sample.labels["sweep"] == self._sweep:
                sums[tuple(sample.labels[tag] for tag in tags)] += sample.value
        return dict(sums)

    def value(self, name: str) -> float:
        return self.values(name).get((), float("nan"))


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(OSError):  # a port that does not answer yet
            if true():
                return
        time.sleep(0.5)
    raise AssertionError("it never came")


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)
def test_running_and_finished_sweep_is_visible_on_the_metrics_port(folder: Path, store: str) -> None:
    """Trainer and simulators are fakes; policy server, scorer, control actor, MLflow and the scraping are
    real.
    """
    import ray

    looks: list[Observation] = []

    servers: list[Any] = []

    def ask(job: RolloutJob) -> Outcome:
        """Ask the real policy server eight times, and report one retry of each kind."""
        if len(looks) < 8:
            looks.append(Observation({}, np.zeros(9, np.float32), "lift", 0))
            ray.get(servers[0].act.remote("arms/one/step_000003", looks[-1]))
        if len(looks) == 3:
            pool.on_retry("worker", job, "its process died")
            pool.on_retry("episode", job, "its process died")
        return simulated_outcome(job)

    pool = FakeRolloutPool(ask, paused=True)  # until its queue was seen

    def players(state: Any, placement: Any, portraits: Any, on_retry: Any) -> Any:
        pool.on_retry = on_retry
        server = ray.remote(PolicyServerWithoutCheckpoints).options(num_cpus=0, max_concurrency=10)
        servers.append(server.remote(1, "cpu", "", state.sweep.name))
        return replace(FakeEvalBackend()(state, placement, portraits), pool=pool)

    def fit(job: Any, place: str, resources: dict[str, float], desk: Any, attempts: int) -> Any:
        if job.arm.demo_count == 4 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return FakeTrainer(0.001)(job, place, resources, desk, attempts)

    asked = Run(sweep(folder, store), fit, players)
    scraped = Scraped(folder.name)
    failure: list[BaseException] = []

    def look() -> None:
        """Inspect the sweep while the pool is paused: everything is trained and queued."""
        try:
            until(lambda: scraped.value("ray_demoscale_queued_episodes") == 4 * 3 * 40)
            assert scraped.value("ray_demoscale_unscored_checkpoints") == 4 * 3
            until(
                lambda: scraped.value("ray_demoscale_rollout_workers") == asked.run.state.sweep.rollout_actors
            )
            assert not scraped.values("ray_demoscale_episodes_total")
        except BaseException as error:
            failure.append(error)
        finally:
            pool.resume()

    looking = threading.Thread(target=look)
    looking.start()
    asked()
    looking.join()
    assert not failure, failure

    until(lambda: sum(scraped.values("ray_demoscale_episodes_total").values()) == 4 * 3 * 40)
    scores = [score for arm in asked.run.board.arms.values() for score in arm.scores.values()]
    results = {
        ("Lift", "success"): sum(score.successes for score in scores),
        ("Lift", "failure"): sum(score.failures for score in scores),
    }
    assert scraped.values("ray_demoscale_episodes_total", "task", "result") == results
    until(lambda: scraped.value("ray_demoscale_queued_episodes") == 0)
    assert scraped.value("ray_demoscale_unscored_checkpoints") == 0
    assert scraped.value("ray_demoscale_rollout_workers") == 0
    until(lambda: scraped.value("ray_demoscale_replan_latency_seconds_count") == 8)
    assert scraped.value("ray_demoscale_policy_batch_fill_ratio_count") == 8, "one at a time"
    assert scraped.value("ray_demoscale_optimiser_steps_total") == 4 * 9
    assert scraped.value("ray_demoscale_clips_total") == 2 * scraped.value(
        "ray_demoscale_optimiser_steps_total"
    )
    assert scraped.value("ray_demoscale_optimiser_step_seconds_total") > 0
    assert scraped.value("ray_demoscale_loader_stall_seconds_total") > 0
    assert scraped.values("ray_demoscale_retries_total", "kind") == {
        ("worker",): 1,
        ("episode",): 1,
        ("training",): 1,
    }
    assert scraped.value("ray_demoscale_mlflow_untold_records") >= 0

    families = scraped.families()
    assert families.keys() == BY_NAME.keys()
    for name, family in families.items():
        metric = BY_NAME[name]
        assert family.type == metric.kind.lower()
        assert family.documentation == f"{metric.description} ({metric.unit})"
        for sample in family.samples:
            assert {"sweep", *metric.tags} <= sample.labels.keys()
    bounds = {
        sample.labels["le"]
        for sample in families["ray_demoscale_policy_batch_fill_ratio"].samples
        if sample.name.endswith("_bucket")
    }
    assert {float(bound) for bound in bounds} == {*metrics.BATCH_FILL.bounds, float("inf")}

    (line,) = asked.said("playing", "again")
    assert re.fullmatch(
        r"playing Lift-\d+-\d+ of demos-\d_ratio-0_seed-0 after \d steps again: its process died", line
    )
    assert asked.said("training demos-4_ratio-0_seed-0 again: its trial's process died")
