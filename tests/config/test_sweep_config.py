"""The sweep file: all mistakes at once, each with its field and remedy, before anything is spent."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import yaml
from conftest import CHECKOUT

from installed_package import install_own_tasks, on_path
from orchestrator.api import Sweep
from orchestrator.cluster.placement import SHARED_GPU, ResourcePlan
from orchestrator.config.arms import Arm, expand_grid
from orchestrator.config.sweep_config import SweepError
from orchestrator.data.clip_stream import DECODE_CPUS, FETCH_CPUS
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.provenance import TRAINING_PACKAGES, package_versions
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode, make_episode_store
from sim_workers.envs.libero import LIBERO_10
from sim_workers.envs.robocasa import ROBOCASA_12_LABELLED, ROBOCASA_24

GOOD = {
    "name": "good",
    "data": {"episodes": "STORE", "demo_count": [2, 4], "action_free_ratio": [0, 1]},
    "train": {"steps": 100, "checkpoint_every": 40},
    "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 50},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with eight episodes of Lift."""
    return make_episode_store(tmp_path_factory.mktemp("made"), 8)


@pytest.fixture
def store(made: str, tmp_path: Path) -> str:
    """Return a copy of the store that a test may change."""
    return str(shutil.copytree(made, tmp_path / "store"))


def write(folder: Path, store: str, **sections: object) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **sections}).replace("STORE", store))
    return path


def test_sweep_yaml_round_trips(tmp_path: Path, store: str) -> None:
    sweep = Sweep.load(write(tmp_path, store))
    (tmp_path / "resolved.yaml").write_text(sweep.to_yaml())
    assert Sweep.load(tmp_path / "resolved.yaml") == sweep


def test_next_arm_search_has_no_grid_and_plans_all_arms_that_it_may_train(tmp_path: Path, store: str) -> None:
    data = {"episodes": "STORE", "demo_count": [1, 2, 3]}
    sweep = Sweep.load(write(tmp_path, store, data=data, seeds=[0, 1], search="next"))
    assert sweep.search.next
    assert sweep.search.next.rate == 0.9
    assert (sweep.grid(), len(sweep.possible_arms()), sweep.plan().arms) == ([], 6, 6)
    assert "search.next chooses from these arms" in str(sweep.plan())


def test_overrides_are_validated_like_the_file(tmp_path: Path, store: str) -> None:
    path = write(tmp_path, store)
    assert (
        Sweep.load(path, ("train.steps=200", "seeds=[0, 1]", "train.learning_rate=1e-4")).train.learning_rate
        == 1e-4
    )
    with pytest.raises(SweepError, match=r"train\.steps: input should be greater than 0, not -1"):
        Sweep.load(path, ("train.steps=-1",))
    with pytest.raises(SweepError, match="write it as field=value"):
        Sweep.load(path, ("train.steps",))


def test_yaml_text_that_looks_like_a_number_is_a_number(tmp_path: Path, store: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        write(tmp_path, store).read_text().replace("steps: 100", "steps: 100\n  learning_rate: 1e-4")
    )
    assert Sweep.load(path).train.learning_rate == 1e-4


def test_sweep_load_lists_all_mistakes_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "/nowhere/lift",
        name="Not A Name",
        train={"stepss": 100, "checkpoint_every": 0},
        suite={"tasks": ["Lfit"], "episodes": 10, "horizon": 50},
    )
    with pytest.raises(SweepError) as caught:
        Sweep.load(path)
    told = "\n".join(caught.value.problems)
    assert "name: " in told
    assert "train.stepss: unknown field; did you mean steps?" in told
    assert "train.steps: missing" not in told
    assert "train.checkpoint_every: input should be greater than 0, not 0" in told
    assert "unknown task Lfit; did you mean Lift?" in told
    assert "4 mistakes" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeds=3", "seeds: write a list, such as [1, 2], not 3"),
        ("seeds=[a]", "seeds.0: write a whole number, not 'a'"),
        (
            "name=my sweep",
            "name: write lower-case letters, digits, `.`, `_` and `-`, and begin with a letter or a digit, not"
            " 'my sweep'",
        ),
        (
            "budget=3",
            "budget: write a mapping of its fields (max_gpu_hours, max_episodes, max_wall), not 3",
        ),
    ],
)
def test_value_of_a_wrong_type_says_in_one_sentence_what_to_write(
    tmp_path: Path, store: str, override: str, sentence: str
) -> None:
    with pytest.raises(SweepError) as caught:
        Sweep.load(write(tmp_path, store), (override,))
    assert caught.value.problems == [sentence]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"policy": {"weights": "./nowhere"}},
            "policy.weights: there is no folder ./nowhere; write a folder, a hub id",
        ),
        (
            {"train": {"steps": 100, "checkpoint_every": 40} | {"videos": "sweep"}},
            "train.videos: sweep asks for train.mode two_stage",
        ),
        (
            {"train": {"steps": 100, "checkpoint_every": 40} | {"videos": "sweep", "mode": "two_stage"}},
            "and for one data.action_free_ratio",
        ),
        (
            {"policy": {"baselines": ["bc"]}},
            "policy.baselines.0: input should be 'diffusion_policy', not 'bc'",
        ),
        (
            {"search": "optuna"},
            "optuna needs to know how many arms to try: write search: {optuna: {trials: 40}}",
        ),
        ({"search": "gird"}, "search: unknown search gird; there are grid, asha, median, optuna and next"),
        (
            {"search": {"asha": {"rungs": 3}}},
            "search.asha.rungs: unknown field; the fields here are first, reduction",
        ),
        (
            {"search": {"asha": {}, "median": {}}},
            "search: asha and median are two rules for one decision; keep one of them",
        ),
        (
            {"data": {"episodes": "STORE", "demo_count": {"low": 2, "high": 4}}},
            "data.demo_count: a range asks for search: {optuna: {trials: 40}}",
        ),
        (
            {"data": {"episodes": "STORE", "demo_count": {"low": 4, "high": 2}}},
            "data.demo_count: low is 4 and high 2; low must be below high",
        ),
        (
            {"data": {"episodes": "STORE", "demo_count": [0]}},
            "data.demo_count.0: input should be greater than 0, not 0",
        ),
        (
            {"search": {"optuna": {"trials": 4}}, "seeds": [0, 1]},
            "search.optuna: its arms are tried with one seed",
        ),
        (
            {"search": {"next": {"target": "demos_for_90"}}},
            "search.next.target: unknown target demos_for_90; write demos_for_0.9, equivalence or area",
        ),
        ({"search": {"next": {}, "asha": {}}}, "asha and median stop arms before; leave them out"),
        ({"search": {"next": {}, "optuna": {"trials": 2}}}, "optuna and next both choose the arms"),
        (
            {"search": "next", "data": {"episodes": "STORE", "demo_count": [1, 2]}},
            "data.demo_count: search.next forecasts from 3 counts or more; add to the list",
        ),
        (
            {
                "search": {"next": {"target": "equivalence"}},
                "data": {"episodes": "STORE", "demo_count": [1, 2, 3]},
            },
            "search.next.target: equivalence takes two ratios",
        ),
        (
            {"search": "next", "policy": {"baselines": ["diffusion_policy"]}},
            "search.next: its arms are those of one policy",
        ),
    ],
)
def test_sweep_load_of_contradicting_fields_names_the_remedy(
    tmp_path: Path, store: str, sections: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SweepError, match=re.escape(sentence)):
        Sweep.load(write(tmp_path, store, **sections))


def test_search_accepts_a_name_or_settings_and_ranges(tmp_path: Path, store: str) -> None:
    assert Sweep.load(write(tmp_path, store, search="grid")) == Sweep.load(write(tmp_path, store))
    assert Sweep.load(write(tmp_path, store, search="asha")) == Sweep.load(
        write(tmp_path, store, search={"asha": {"reduction": 3}})
    )
    data = {
        "episodes": "STORE",
        "demo_count": {"low": 2, "high": 4},
        "action_free_ratio": {"low": 0, "high": 1},
    }
    sweep = Sweep.load(write(tmp_path, store, data=data, search={"optuna": {"trials": 5}, "asha": {}}))
    assert (sweep.grid(), sweep.plan().arms) == ([], 5)
    (tmp_path / "resolved.yaml").write_text(sweep.to_yaml())
    assert Sweep.load(tmp_path / "resolved.yaml") == sweep


def test_plan_counts_video_models_shared_by_arms(tmp_path: Path, store: str) -> None:
    two_stage = {
        "steps": 100,
        "video_steps": 50,
        "checkpoint_every": 40,
        "mode": "two_stage",
        "batch_size": 2,
    }
    apart = Sweep.load(write(tmp_path, store, train=two_stage)).plan()
    assert (apart.arms, apart.video_models, apart.clips) == (4, 4, 2 * (4 * 100 + 4 * 50))
    data = {"episodes": "STORE", "demo_count": [2, 4], "action_free_ratio": [1]}
    shared = Sweep.load(
        write(tmp_path, store, data=data, seeds=[0, 1], train=two_stage | {"videos": "sweep"})
    ).plan()
    assert (shared.arms, shared.video_models, shared.clips) == (4, 2, 2 * (4 * 100 + 2 * 50))
    assert "on 2 video models trained first" in str(shared)


def test_grid_has_each_baseline_once_per_demo_count(tmp_path: Path, store: str) -> None:
    arms = Sweep.load(write(tmp_path, store, policy={"baselines": ["diffusion_policy"]})).grid()
    assert [arm.name for arm in arms if arm.kind == "diffusion_policy"] == [
        "diffusion_policy_demos-4_ratio-0_seed-0",
        "diffusion_policy_demos-2_ratio-0_seed-0",
    ]
    assert len(arms) == 6


def test_sweep_load_lists_mistakes_of_file_and_store_together(tmp_path: Path) -> None:
    with pytest.raises(SweepError) as caught:
        Sweep.load(write(tmp_path, "/nowhere/lift", train={"steps": 0, "checkpoint_every": 1}))
    assert len(caught.value.problems) == 2
    assert "there is no episode store here" in caught.value.problems[1]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"data": {"episodes": "/nowhere", "demo_count": [2]}},
            "data.episodes: /nowhere: there is no episode store here",
        ),
        (
            {"data": {"episodes": "STORE", "demo_count": [6], "action_free_ratio": [1]}},
            "Lift: 6 demos and 6 action-free episodes are asked for",
        ),
        (
            {"suite": {"tasks": ["Lift", "Door"], "episodes": 2, "horizon": 9}},
            "suite.tasks: the store has no demonstrations of Door; it has Lift",
        ),
    ],
)
def test_plan_of_a_sweep_that_the_store_cannot_serve_raises(
    tmp_path: Path, store: str, sections: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SweepError, match=sentence.replace(".", r"\.")):
        Sweep.load(write(tmp_path, store, **sections)).plan()


@pytest.mark.parametrize(
    ("text", "sentence"), [("a: [1", "not readable as YAML"), ("- a", "mapping of fields")]
)
def test_sweep_load_of_a_file_that_is_no_sweep_raises_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SweepError, match=sentence):
        Sweep.load(tmp_path / "sweep.yaml")
    with pytest.raises(SweepError, match="there is no such file"):
        Sweep.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"simulator": "robosuite 1.4"},
            (
                "could not be scored on Lift here. simulator: the policy was trained with robosuite 1.4, here"
                " it is robosuite 1.5"
            ),
        ),
        (
            {"image_size": (60, 60)},
            "policy.preset: tiny needs pictures whose sides are multiples of 16; the store's are 60x60",
        ),
    ],
)
def test_plan_for_a_store_with_another_contract_raises(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    storage = open_storage(str(tmp_path / "store"))
    other = replace(CONTRACT, **change)
    commit(
        storage,
        other,
        [put_episode(storage, make_episode(seed, size=other.image_size[0]), 20.0) for seed in range(8)],
    )
    with pytest.raises(SweepError, match=re.escape(sentence)):
        Sweep.load(write(tmp_path, storage.uri)).plan()


def test_pinned_sweep_keeps_its_data_version_after_a_new_commit(tmp_path: Path, store: str) -> None:
    sweep = Sweep.load(write(tmp_path, store), (f"storage={tmp_path / 'runs'}",))
    before = SweepState.open(sweep, pin=True)
    commit(open_storage(store), CONTRACT, [put_episode(open_storage(store), make_episode(99), 20.0)])
    after = SweepState.open(sweep)
    assert after.arms() == before.arms()
    assert after.manifest.fingerprint == before.manifest.fingerprint
    another = SweepState.open(sweep.model_copy(update={"name": "another"}))
    assert another.manifest.fingerprint != before.manifest.fingerprint


def test_stored_sweep_with_credentials_opens_without_them(tmp_path: Path, store: str) -> None:
    sweep = Sweep.load(write(tmp_path, store), (f"storage={tmp_path / 'runs'}",))
    SweepState.open(sweep, pin=True)
    file = tmp_path / "runs" / "sweeps" / "good.json"
    kept = json.loads(file.read_text())
    kept["sweep"]["mlflow"] = "https://ann:hunter22@mlflow.example.org/"
    file.write_text(json.dumps(kept))
    opened = SweepState.named("good", str(tmp_path / "runs")).sweep
    assert opened.mlflow == "https://mlflow.example.org/"
    kept["sweep"]["train"]["steps"] = -1
    file.write_text(json.dumps(kept))
    with pytest.raises(SweepError, match=r"train\.steps: input should be greater than 0") as raised:
        SweepState.named("good", str(tmp_path / "runs"))
    assert "hunter22" not in str(raised.value)


def test_plan_counts_arms_checkpoints_rollouts_clips_and_bytes(tmp_path: Path, store: str) -> None:
    plan = Sweep.load(write(tmp_path, store)).plan()
    assert (plan.arms, plan.checkpoints, plan.rollouts, plan.control_steps) == (
        4,
        4 * 3,
        4 * 3 * 10,
        4 * 3 * 10 * 50,
    )
    assert plan.clips == 4 * 100 * 32
    assert 0 < plan.bytes_per_epoch <= plan.store_bytes
    assert 0 < plan.stream_bytes < 2**30
    assert "MiB per training worker" in str(plan)


def damage(store: str, episode_id: str) -> None:
    """Flip one bit."""
    path = Path(store) / load_manifest(open_storage(store))[episode_id].key
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_without_damaged_quarantines_episodes_and_keeps_the_demo_count(tmp_path: Path, store: str) -> None:
    settings = (f"storage={tmp_path / 'runs'}", "data.on_corrupt=quarantine", "data.demo_count=[3]")
    before = SweepState.open(Sweep.load(write(tmp_path, store), settings), pin=True)
    (arm,) = before.sweep.grid()[:1]
    victim = before.subset(arm).demos[0]
    damage(store, victim)
    read = []
    after = before.without_damaged(lambda done, todo: read.append((done, todo)))
    assert list(after.quarantined) == [victim]
    assert "is damaged" in after.quarantined[victim]
    assert read
    subset = after.subset(arm)
    assert victim not in (*subset.demos, *subset.action_free)
    assert len(subset.demos) == 3
    assert after.training != before.training, "arms that read other episodes are other arms"
    # Later readers of the sweep know them, and do not read them again with another result.
    again = SweepState.open(after.sweep)
    assert again.quarantined == after.quarantined
    assert again.without_damaged(lambda done, todo: None).arms() == after.arms()


def test_without_damaged_with_too_few_whole_episodes_raises(tmp_path: Path, store: str) -> None:
    state = SweepState.open(
        Sweep.load(write(tmp_path, store), (f"storage={tmp_path / 'runs'}", "data.on_corrupt=quarantine")),
        pin=True,
    )
    for entry in state.manifest.entries:
        damage(store, entry.episode_id)
    with pytest.raises(SweepError, match="set aside as damaged"):
        state.without_damaged(lambda done, todo: None)


def test_workers_that_do_not_divide_the_batch_size_are_refused(tmp_path: Path, store: str) -> None:
    with pytest.raises(SweepError, match=r"train\.workers: 3 workers cannot share batch_size 32 equally"):
        Sweep.load(write(tmp_path, store), ("train.workers=3",))


def test_checkpoint_steps_end_with_the_last_step(tmp_path: Path, store: str) -> None:
    assert Sweep.load(write(tmp_path, store)).checkpoint_steps() == [40, 80, 100]
    assert Sweep.load(write(tmp_path, store), ("train.checkpoint_every=500",)).checkpoint_steps() == [100]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("", "checkpoint_every=7", True),
        ("", "feature_cache_mb=0", True),
        ("schedule=constant", "steps=5000", True),
        ("schedule=constant mode=two_stage video_steps=9", "steps=5000", True),
        ("", "video_steps=9", True),
        ("", "steps=5000", False),
        ("schedule=constant mode=two_stage", "steps=5000", False),
        ("mode=two_stage video_steps=9", "video_steps=10", False),
        ("", "workers=2", False),
        ("", "batch_size=16", False),
    ],
)
def test_training_key_changes_only_with_settings_that_change_the_weights(
    tmp_path: Path, store: str, before: str, after: str, same: bool
) -> None:
    """Each of several workers draws noise of its own, so their number affects the weights."""
    settings = [f"train.{setting}" for setting in ("batch_size=32", *before.split())]
    keys = [
        Sweep.load(write(tmp_path, store), sets).training_key(
            "data", (), "", package_versions(TRAINING_PACKAGES)
        )
        for sets in (settings, [*settings, f"train.{after}"])
    ]
    assert (keys[0].fingerprint == keys[1].fingerprint) is same


def test_training_key_is_the_same_wherever_video_is_decoded(tmp_path: Path, store: str) -> None:
    packages = package_versions(TRAINING_PACKAGES)
    trainer, cluster = (
        Sweep.load(write(tmp_path, store), [f"data.decode={decode}"]) for decode in ("trainer", "cluster")
    )
    assert (trainer.data.decode, cluster.data.decode) == ("trainer", "cluster")
    assert (
        trainer.training_key("data", (), "", packages).fingerprint
        == cluster.training_key("data", (), "", packages).fingerprint
    )


def test_arm_ids_of_a_grid_are_distinct_and_depend_on_the_protocol() -> None:
    arms = expand_grid((2, 4), (0.0, 1.0), (0, 1, 2))
    assert len(set(arms)) == 12
    assert len({arm.arm_id("protocol") for arm in arms}) == 12
    assert Arm(2, 0.0, 0).arm_id("protocol") != Arm(2, 0.0, 0).arm_id("another")
    assert (
        Arm(2, 0.0, 0).arm_id("protocol")
        == "demos-2_ratio-0_seed-0_" + Arm(2, 0.0, 0).arm_id("protocol")[-8:]
    )


def test_readme_sweep_file_is_valid() -> None:
    text = (CHECKOUT / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert len(Sweep.model_validate(yaml.safe_load(text)).grid()) == 4 * 3 * 3 + 4 * 3


def test_repository_sweep_files_are_valid(tmp_path: Path) -> None:
    """One of them plays tasks of the example package."""
    install_own_tasks(tmp_path)
    with on_path(tmp_path):
        for path in (CHECKOUT / "jobs").rglob("*.yaml"):
            Sweep.model_validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("file", "table", "horizon"), [("libero10", LIBERO_10, 500), ("robocasa24", ROBOCASA_24, 1000)]
)
def test_paper_sweep_files_have_its_tasks_and_fifty_episodes(
    file: str, table: dict[str, str], horizon: int
) -> None:
    sweep = yaml.safe_load((CHECKOUT / "jobs" / f"{file}.yaml").read_text())
    assert sweep["suite"]["tasks"] == list(table)
    assert (sweep["suite"]["episodes"], sweep["suite"]["horizon"]) == (50, horizon)


def test_paper_sweep_file_names_the_labelled_tasks() -> None:
    sweep = yaml.safe_load((CHECKOUT / "jobs" / "robocasa24.yaml").read_text())
    assert tuple(sweep["data"]["labelled_tasks"]) == ROBOCASA_12_LABELLED


@pytest.mark.parametrize(("decode", "stream_cpus"), [("trainer", FETCH_CPUS), ("cluster", DECODE_CPUS)])
@pytest.mark.parametrize(
    ("cluster", "workers", "arms", "concurrent"),
    [
        ({"CPU": 2.0}, 1, 4, 2),
        ({"CPU": 2.0}, 2, 4, 1),
        ({"CPU": 4.0}, 4, 4, 1),
        ({"CPU": 64.0, "GPU": 8.0}, 2, 10, 4),
        ({"CPU": 64.0, "GPU": 8.0}, 8, 1, 1),
        ({"CPU": 16.0, "GPU": 1.0}, 1, 4, 1),
    ],
)
def test_resource_plan_claims_no_more_than_the_cluster_has(
    cluster: dict[str, float],
    workers: int,
    arms: int,
    concurrent: int,
    decode: Literal["trainer", "cluster"],
    stream_cpus: float,
) -> None:
    placement = ResourcePlan.fit(cluster, workers, rollout_actors=2, arms=arms, decode=decode)
    assert placement.concurrent_arms == concurrent
    trainers = concurrent * workers
    assert trainers * (placement.trainer["CPU"] + stream_cpus) + 2 * placement.rollout_cpus <= cluster["CPU"]
    assert trainers * (placement.trainer.get("GPU", 0) + SHARED_GPU * ("GPU" in cluster)) <= cluster.get(
        "GPU", 0
    )


def test_resource_plan_that_cannot_fit_raises_with_the_numbers() -> None:
    with pytest.raises(SweepError, match="one arm needs 4 workers at once, the cluster has 2 CPUs"):
        ResourcePlan.fit({"CPU": 2.0}, 4, 2, 1)


def test_jobs_readme_is_generated_from_the_schema() -> None:
    from orchestrator.config.docs import page

    assert (CHECKOUT / "jobs" / "README.md").read_text() == page(), (
        "run `python -m orchestrator.config.docs > jobs/README.md`"
    )
