"""`policy.lines`: which arms a sweep has, what of a line shapes their ids, and one sentence per mistake."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from external_policies import make_policy
from installed_package import forget, install, on_path
from learner_package import MODULE, install_linear
from orchestrator.api import Sweep
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.external.job import ExternalJob
from orchestrator.fingerprints import compare
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode
from orchestrator.training.loop import TrainJob
from policy.entry_points import POLICIES

OWN = ("video_action", "diffusion_policy")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with twelve episodes of Lift."""
    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    commit(storage, CONTRACT, [put_episode(storage, make_episode(seed), 20.0) for seed in range(12)])
    return storage.uri


def sections(folder: Path, store: str, lines: Any = (), train: Any = None, **others: Any) -> dict[str, Any]:
    policy = {"lines": lines} if lines else {}
    return {
        "name": "lines",
        "data": {"episodes": store, "demo_count": [2, 4], "action_free_ratio": [0, 1]},
        "policy": policy,
        "train": {"steps": 100, "checkpoint_every": 40, "batch_size": 4, **(train or {})},
        "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 50, "video_clips": 0},
        "storage": str(folder / "runs"),
        **others,
    }


def state(folder: Path, store: str, *arguments: Any, **others: Any) -> SweepState:
    return SweepState.open(SweepConfig.model_validate(sections(folder, store, *arguments, **others)))


def mistakes(folder: Path, store: str, *arguments: Any, **others: Any) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sections(folder, store, *arguments, **others)))
    with pytest.raises(SweepError) as caught:
        Sweep.load(path)
    return "\n".join(caught.value.problems)


def test_own_policies_as_lines_have_the_arms_and_ids_of_a_sweep_without_lines(
    folder: Path, store: str
) -> None:
    before = state(folder, store, policy={"baselines": ["diffusion_policy"]})
    for lines in (OWN, [{"policy": name} for name in OWN], OWN[::-1]):
        now = state(folder, store, list(lines))
        assert now.arms() == before.arms()
        assert (now.training, now.protocol, now.comparable) == (
            before.training,
            before.protocol,
            before.comparable,
        )
        for arm in now.arms().values():
            assert now.job(arm) == before.job(arm)
            assert now.protocol_of("nominal", arm) == before.protocol
    key = before.key_of(before.sweep.grid()[0])
    assert key == before.training_key
    assert key.parts["policy"] == {"preset": "tiny"}
    assert "match" not in key.parts["recipe"]
    assert len(before.all_keys()) == len(state(folder, store, list(OWN)).all_keys()) == 2


def test_line_without_action_free_episodes_has_one_arm_per_demo_count(folder: Path, store: str) -> None:
    videos = make_policy(folder / "videos", manifest="action_free: true\n")
    demos = make_policy(folder / "demos")
    lines = ["video_action", str(videos), str(demos), {"name": "ours-demos", "policy": "video_action"}]
    lines[-1]["action_free"] = False  # type: ignore[index]
    arms = state(folder, store, lines).sweep.grid()
    ratios = {
        name: sorted(arm.action_free_ratio for arm in arms if arm.kind == name and arm.demo_count == 2)
        for name in {arm.kind for arm in arms}
    }
    assert ratios == {"video_action": [0, 1], "videos": [0, 1], "demos": [0], "ours-demos": [0]}
    assert {arm.name for arm in arms if arm.kind == "demos"} == {
        "demos_demos-2_ratio-0_seed-0",
        "demos_demos-4_ratio-0_seed-0",
    }


def test_settings_of_a_line_reach_its_jobs_and_change_its_ids_alone(folder: Path, store: str) -> None:
    slow = {"name": "slow", "policy": "video_action", "train": {"learning_rate": 1e-5, "mode": "two_stage"}}
    own = {"name": "none", "policy": "video_action", "weights": "none"}
    one, two = state(folder, store, ["video_action", slow, own]), state(folder, store, ["video_action"])
    arms = {kind: Arm(4, 0.0, 0, kind) for kind in ("video_action", "slow", "none")}
    assert one.arm_id(arms["video_action"]) == two.arm_id(arms["video_action"])
    assert len({one.training_of(arm) for arm in arms.values()}) == 3
    jobs = {kind: one.own_job(arm) for kind, arm in arms.items()}
    assert (jobs["slow"].train.learning_rate, jobs["video_action"].train.learning_rate) == (1e-5, 1e-3)
    assert (jobs["slow"].objective, jobs["video_action"].objective) == ("action", "joint")
    assert (jobs["none"].weights, jobs["none"].starts_from) == ("none", "")
    assert jobs["video_action"].starts_from
    assert one.stage_one(arms["slow"]) is not None
    assert one.stage_one(arms["video_action"]) is None
    assert one.training != two.training
    plan = make_plan(one.sweep)
    assert (plan.arms, plan.video_models) == (12, 4)


def test_external_line_is_keyed_by_its_folder_and_its_settings(folder: Path, store: str) -> None:
    policy = make_policy(folder / "counter")
    arm = Arm(4, 0.0, 0, "counter")

    def key(**line: Any) -> str:
        return state(folder, store, ["video_action", {"policy": str(policy), **line}]).training_of(arm)

    first = key()
    assert key(options={"rate": 0.5}) == first, "the default"
    assert key(options={"rate": 0.75}) != first
    job = state(folder, store, [{"policy": str(policy), "options": {"rate": 0.75}}]).job(arm)
    assert isinstance(job, ExternalJob)
    assert job.options == {"rate": 0.75}
    assert job.train.steps == 100
    (policy / "train.py").write_text("print('another program')\n")
    assert key() != first


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder on the path with the package `linear-policy`."""
    with on_path(tmp_path / "site") as site:
        install_linear(site)
        yield site


LINEAR = Arm(4, 0.0, 0, "linear")


def test_line_of_an_installed_package_is_keyed_by_its_code(site: Path, folder: Path, store: str) -> None:
    def now(**line: Any) -> SweepState:
        return state(folder, store, ["video_action", {"policy": "linear", **line}])

    def keys(opened: SweepState, arm: Arm) -> tuple[str, str]:
        return opened.training_of(arm), opened.protocol_of("nominal", arm)

    first = now()
    linear, ours = keys(first, LINEAR), keys(first, Arm(4, 0.0, 0))
    assert ours == keys(state(folder, store), Arm(4, 0.0, 0))
    assert first.key_of(LINEAR).parts["learner_code"]["package"] == "linear-policy 1.0"
    assert now(options={"scale": 2.0}).training_of(LINEAR) != linear[0]
    assert now(options={"scale": 2.0}).protocol_of("nominal", LINEAR) == linear[1], "the weights' own"
    for module, version, differs in (
        (f"# a comment\n{MODULE}", "1.0", False),
        (MODULE.replace("square()", "abs()"), "1.0", True),
        (MODULE, "1.1", True),
        (MODULE, "1.0", False),
    ):
        install_linear(site, module, version)
        for mine, before in zip(keys(now(), LINEAR), linear, strict=True):
            assert (mine != before) == differs
        assert keys(now(), Arm(4, 0.0, 0)) == ours
    held_out = state(folder, store, ["linear"], suite={"held_out": 2, "video_clips": 0})
    assert held_out.protocol_key("nominal", held_out.sweep.lines[0]).parts["learner_code"]


def test_stored_sweep_of_an_installed_package_keeps_its_keys_without_it(
    site: Path, folder: Path, store: str
) -> None:
    sweep = SweepConfig.model_validate(sections(folder, store, ["linear"]))
    pinned = SweepState.open(sweep, pin=True)
    pinned.keep_keys()
    install_linear(site, MODULE.replace("square()", "abs()"))
    again = SweepState.named("lines", sweep.storage)
    assert again.training == pinned.training
    assert again.protocol_of("nominal", LINEAR) == pinned.protocol_of("nominal", LINEAR)
    assert SweepState.named("lines", sweep.storage, here=True).training != pinned.training
    differences = compare(pinned.key_of(LINEAR), SweepState.open(sweep).key_of(LINEAR))
    assert not [difference for difference in differences if difference.differs], "pinned"
    differences = compare(pinned.key_of(LINEAR), SweepState.open(sweep, here=True).key_of(LINEAR))
    assert [difference.part for difference in differences if difference.differs] == [
        "learner_code linear_policy.py"
    ]
    (site / "linear-policy.dist-info" / "entry_points.txt").unlink()
    forget()
    assert SweepState.named("lines", sweep.storage).training == pinned.training
    with pytest.raises(SweepError, match=r"lines.0.policy: no installed package offers a policy linear"):
        SweepState.named("lines", sweep.storage, here=True)


def test_policy_that_two_packages_offer_is_one_sentence(site: Path, folder: Path, store: str) -> None:
    install(site, "other", {}, {POLICIES.name: {"linear": "other:Linear"}})
    with pytest.raises(SweepError) as caught:
        state(folder, store, ["linear"])
    assert caught.value.problems == [
        "policy.lines.0.policy: the policy linear is offered by linear-policy 1.0 (linear_policy:Linear) and"
        " other 1.0 (other:Linear); uninstall all but one"
    ]


def test_stored_sweep_is_opened_without_the_folder_of_its_policy(folder: Path, store: str) -> None:
    policy = make_policy(folder / "counter")
    sweep = SweepConfig.model_validate(sections(folder, store, [str(policy), "diffusion_policy"]))
    pinned = SweepState.open(sweep, pin=True)
    pinned.keep_keys()
    for file in policy.iterdir():
        file.unlink()
    policy.rmdir()
    again = SweepState.named("lines", sweep.storage)
    assert again.arms() == pinned.arms()
    assert again.training == pinned.training
    with pytest.raises(SweepError, match="the folder of its policy is not on this machine"):
        again.job(Arm(4, 0.0, 0, "counter"))


def test_equal_epochs_give_arms_with_fewer_demos_fewer_steps(folder: Path, store: str) -> None:
    steps, epochs = state(folder, store), state(folder, store, train={"match": "epochs"})
    few, many = Arm(2, 0.0, 0), Arm(4, 0.0, 0)
    assert [epochs.sweep.train_of(arm).steps for arm in (few, many)] == [50, 100]
    assert [epochs.sweep.checkpoint_steps(arm) for arm in (few, many)] == [[20, 40, 50], [40, 80, 100]]
    assert epochs.arm_id(many) == steps.arm_id(many)
    assert epochs.arm_id(few) != steps.arm_id(few)
    assert epochs.arm_state(few).steps == epochs.own_job(few).train.steps == 50
    assert epochs.last_step(epochs.arm_id(few)) == 50
    assert make_plan(epochs.sweep).clips == 4 * (50 + 50 + 100 + 100)
    assert epochs.training != steps.training


def test_equal_epochs_keep_a_stage_1_that_all_arms_share(folder: Path, store: str) -> None:
    two = {"match": "epochs", "mode": "two_stage", "video_steps": 60}
    data = {"episodes": store, "demo_count": [2, 4], "action_free_ratio": [1]}
    shared = state(folder, store, train={**two, "videos": "sweep"}, data=data)
    own = state(folder, store, train=two, data=data)
    few, many = Arm(2, 1.0, 0), Arm(4, 1.0, 0)
    for each, numbers in ((shared, [60, 60]), (own, [30, 60])):
        videos = [each.stage_one(arm) for arm in (few, many)]
        assert [video.train.steps for video in videos if video] == numbers
    assert len({video.arm_id for arm in (few, many) if (video := shared.stage_one(arm))}) == 1


@pytest.mark.parametrize(
    ("lines", "others", "told"),
    [
        (["video_acton"], {}, "policy.lines.0: policy: there is no policy video_acton; did you mean video_a"),
        (["policies/none"], {}, "policy.lines.0: policy: there is no folder policies/none; write that of"),
        (["video_action", "video_action"], {}, "policy.lines: two lines are named video_action"),
        ([{"policy": "video_action", "name": "a b"}], {}, "policy.lines.0.name: 'a b' cannot name a line"),
        ([{"policy": "video_action", "name": "video-x"}], {}, "cannot name a line"),
        (
            [{"policy": "video_action", "nam": "x"}],
            {},
            "policy.lines.0.nam: unknown field; did you mean name",
        ),
        (
            [{"policy": "video_action", "name": "x", "train": {"learning_rat": 1}}],
            {},
            "policy.lines.0: train.learning_rat: not a field that a line of video_action can set; did you mean",
        ),
        (
            [{"policy": "video_action", "name": "x", "train": {"steps": 1}}],
            {},
            "train.steps: not a field that a line of video_action can set",
        ),
        (
            ["video_action", {"policy": "video_action", "name": "x", "train": {"learning_rate": -1}}],
            {},
            "policy.lines.1.train.learning_rate: input should be greater than 0, not -1",
        ),
        (
            [{"policy": "diffusion_policy", "name": "x", "train": {"mode": "joint"}}],
            {},
            "train.mode: not a field that a line of diffusion_policy can set",
        ),
        ([{"policy": "diffusion_policy", "action_free": True}], {}, "cannot learn from episodes without"),
        ([{"policy": "video_action", "options": {"a": 1}}], {}, "options: video_action has none"),
        (["COUNTER", {"policy": "COUNTER", "name": "b", "preset": "tiny"}], {}, "preset: COUNTER is an ext"),
        ([{"policy": "COUNTER", "options": {"rat": 1}}], {}, "options.rat: counter has no such option; did"),
        ([{"policy": "COUNTER", "name": "video_action"}], {}, "is the name of this package's own policy"),
        (["BROKEN"], {}, "BROKEN: trian: unknown field; did you mean train?"),
        (["video_action"], {"baselines": ["diffusion_policy"]}, "diffusion_policy is one of policy.lines"),
    ],
)
def test_every_mistake_in_a_line_is_one_sentence_with_its_field(
    folder: Path, store: str, lines: Any, others: dict[str, Any], told: str
) -> None:
    counter, broken = make_policy(folder / "counter"), make_policy(folder / "broken", manifest="trian: [a]\n")
    named = yaml.safe_dump(lines).replace("COUNTER", str(counter)).replace("BROKEN", str(broken))
    told = told.replace("COUNTER", str(counter)).replace("BROKEN", str(broken))
    assert told in mistakes(folder, store, policy={"lines": yaml.safe_load(named), **others})


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({"search": "asha"}, "train.match: a search compares arms after the same number of steps"),
        ({"search": {"optuna": {"trials": 4}}}, "train.match: a search compares arms"),
    ],
)
def test_equal_epochs_exclude_what_compares_arms_at_equal_steps(
    folder: Path, store: str, others: dict[str, Any], told: str
) -> None:
    assert told in mistakes(folder, store, train={"match": "epochs"}, **others)


TIMED = {"match": "gpu_seconds", "seconds": 90, "steps": None}


def test_budget_of_time_takes_the_place_of_steps_in_arms_plan_and_keys(folder: Path, store: str) -> None:
    steps, timed = state(folder, store), state(folder, store, train=TIMED)
    longer = state(folder, store, train={**TIMED, "seconds": 180})
    arm = Arm(4, 1.0, 0)
    assert timed.sweep.checkpoint_steps(arm) == [40, 80, 90]
    assert (timed.arm_state(arm).steps, timed.arm_state(arm).unit) == (90, "seconds")
    assert timed.last_step(timed.arm_id(arm)) == 90
    assert len({one.arm_id(arm) for one in (steps, timed, longer)}) == 3
    constant = [
        state(folder, store, train={**TIMED, "seconds": seconds, "schedule": "constant"}).arm_id(arm)
        for seconds in (90, 180)
    ]
    assert constant[0] == constant[1], "training for longer passes through the same second"
    plan = make_plan(timed.sweep)
    assert (plan.clips, plan.checkpoints, plan.seconds) == (0, 4 * 3, 90)
    assert "90 s per arm, 0.100 h in all, of GPUs, or of training processes without any" in str(plan)
    assert SweepConfig.model_validate(yaml.safe_load(timed.sweep.to_yaml())) == timed.sweep
    assert "seconds" not in steps.sweep.to_yaml()


def test_budget_of_time_reaches_external_policies_and_their_keys(folder: Path, store: str) -> None:
    arm = Arm(4, 0.0, 0, "counter")

    def key(manifest: str, **train: Any) -> str:
        policy = make_policy(folder / "counter", manifest=manifest)
        return state(folder, store, [str(policy)], {**TIMED, **train}).training_of(arm)

    understands = "understands: [seconds]\n"
    first = key(understands)
    assert key(understands, seconds=91) != first
    assert key(f"{understands}resources: {{cpus: 2}}\n") != first, "more cores go further"
    assert key(understands, checkpoint_every=10) == first


@pytest.mark.parametrize(
    ("train", "weight", "said"),
    [
        (
            TIMED,
            None,
            "counter cannot end its training by time; match steps, or let its command follow seconds",
        ),
        ({}, 2.0, "counter does not draw its samples by the stores' weights; leave the weights out, or let"),
    ],
)
def test_external_policy_that_cannot_follow_a_choice_is_refused_in_a_plan(
    folder: Path, store: str, train: dict[str, Any], weight: float | None, said: str
) -> None:
    policy = make_policy(folder / "counter")
    data = {"episodes": [{"store": store, "weight": weight}], "demo_count": [2, 4]}
    sweep = SweepConfig.model_validate(sections(folder, store, [str(policy)], train, data=data))
    for look in (make_plan, lambda one: SweepState.open(one, pin=True)):
        with pytest.raises(SweepError, match=said) as caught:
            look(sweep)
        assert len(caught.value.problems) == 1
    assert not list((folder / "runs").glob("sweeps/*"))
    make_policy(folder / "counter", manifest="understands: [seconds, weights]\n")
    assert make_plan(sweep).arms == 2


def test_external_line_learns_from_the_proprioception_of_the_suite(folder: Path, store: str) -> None:
    policy, arm = make_policy(folder / "counter"), Arm(4, 0.0, 0, "counter")
    suite = {"tasks": ["Lift"], "episodes": 4, "horizon": 50, "video_clips": 0}
    whole = state(folder, store, [str(policy)])
    chosen = state(folder, store, [str(policy)], suite={**suite, "proprio": ["gripper_qpos", "eef_pos"]})
    job = chosen.job(arm)
    assert isinstance(job, ExternalJob)
    assert job.proprio == chosen.proprio
    assert [CONTRACT.proprio[column] for column in job.proprio or ()] == [*chosen.contract.proprio]
    assert len(chosen.contract.proprio) == 5
    assert chosen.training_of(arm) != whole.training_of(arm)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"match": "gpu_seconds", "steps": None}, "train.steps: match: gpu_seconds needs a budget of time"),
        ({**TIMED, "steps": 5}, "train.steps: match: gpu_seconds ends training by time; leave steps out"),
        ({"seconds": 5}, "train.seconds: a budget of time is that of match: gpu_seconds"),
        ({**TIMED, "mode": "two_stage"}, "train.match: gpu_seconds gives every arm one budget"),
        ({"steps": None}, "train.steps: missing"),
    ],
)
def test_mistakes_of_a_budget_of_time_are_sentences(
    folder: Path, store: str, train: dict[str, Any], said: str
) -> None:
    assert said in mistakes(folder, store, train=train)


def test_job_of_an_own_line_is_a_training_job(folder: Path, store: str) -> None:
    assert isinstance(state(folder, store).job(Arm(2, 1.0, 0)), TrainJob)


def test_plan_says_what_an_external_line_ignores_and_that_it_was_not_run(folder: Path, store: str) -> None:
    policy = make_policy(folder / "counter", manifest="tested: false\n")
    plan = make_plan(state(folder, store, [str(policy)], train={"learning_rate": 0.01}).sweep)
    assert plan.notes == (
        "counter: the authors of its policy.yaml have not run it",
        "counter does not follow train.learning_rate",
    )
    assert "note           counter: the authors" in str(plan)
