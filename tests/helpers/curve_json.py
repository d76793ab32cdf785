"""The JSON of two synthetic curves: one with every part, one with the least."""

from typing import Any

from orchestrator.stats.fixed_sample import wilson
from orchestrator.tracking.rollout_videos import RolloutVideo

COUNTS, SEEDS, TASKS, EPISODES = (10, 30, 100, 300), (0, 1, 2), ("Lift", "PickPlaceCan"), 25
LINES = {
    ("video_action", 0.0): ("demos only", (0.22, 0.47, 0.71, 0.86)),
    ("video_action", 1.0): ("+ 1 action-free per demo", (0.38, 0.66, 0.83, 0.90)),
    ("diffusion_policy", 0.0): ("diffusion policy (no video)", (0.12, 0.30, 0.55, 0.79)),
}


def rich() -> dict[str, Any]:
    """Return two ratios and a baseline, four demo counts, three seeds (one is missing once), two tasks,
    costs, video distances.
    """
    arms, points = [], []
    for (policy, ratio), (_, rates) in LINES.items():
        for demos, rate in zip(COUNTS, rates, strict=True):
            own = []
            for seed in SEEDS:
                if (policy, ratio, demos, seed) == ("video_action", 1.0, 300, 2):
                    continue
                by_task = {
                    task: _counts(round(EPISODES * (rate + (0.06 - 0.12 * place) + 0.05 * (seed - 1))))
                    for place, task in enumerate(TASKS)
                }
                own.append((seed, by_task))
                wins = sum(t["successes"] for t in by_task.values())
                low, high = wilson(wins, EPISODES * len(TASKS))
                early = policy == "diffusion_policy" and demos == 10
                kind = "" if policy == "video_action" else f"{policy}_"
                name = f"{kind}demos-{demos}_ratio-{ratio:g}_seed-{seed}"
                arms.append(
                    {
                        "arm": name,
                        "policy": policy,
                        "demo_count": demos,
                        "action_free_ratio": ratio,
                        "seed": seed,
                        "step": 20_000,
                        "successes": wins,
                    }
                    | {
                        "episodes": EPISODES * len(TASKS),
                        "errors": int(demos == 100 and seed == 1),
                        "low": low,
                        "high": high,
                        "early": early,
                    }
                    | {"cost": _cost(demos, ratio), "run_id": f"{len(arms):032x}"}
                )
            here = [
                arm
                for arm in arms
                if (arm["policy"], arm["action_free_ratio"], arm["demo_count"]) == (policy, ratio, demos)
            ]
            wins, episodes = sum(a["successes"] for a in here), sum(a["episodes"] for a in here)
            low, high = wilson(wins, episodes)
            points.append(
                {
                    "policy": policy,
                    "action_free_ratio": ratio,
                    "demo_count": demos,
                    "success_rate": wins / episodes,
                    "successes": wins,
                }
                | {
                    "episodes": episodes,
                    "errors": sum(a["errors"] for a in here),
                    "low": low,
                    "high": high,
                    "early": here[0]["early"],
                }
                | {"band_low": max(0.0, low - 0.06), "band_high": min(1.0, high + 0.06), "seeds": len(here)}
                | {
                    "missing_seeds": [2] if len(here) < 3 else [],
                    "cost": {k: v * len(here) for k, v in _cost(demos, ratio).items()},
                }
                | {
                    "by_task": {
                        t: _counts(sum(b[t]["successes"] for _, b in own), EPISODES * len(own)) for t in TASKS
                    }
                }
            )
    return {
        "name": "lift-and-can",
        "protocol": "6b82c47c0ff95b91",
        "caption": (
            "Success of svd-256 on Lift, PickPlaceCan; 50 held-out episodes per arm, the same for all, at"
            " most 400 control steps each; seeds 0, 1, 2, one thin line each; bars: Wilson 95 % intervals of"
            " the pooled episodes; shaded: 95 % with the spread between seeds."
        ),
        "answer": [
            "79 demos with one action-free video each reach 0.80; without video it takes 196.",
            "One action-free video per demo is worth 2.3 times the demos (95 % interval 1.4 to 4.0).",
            "Against the diffusion policy without video: better at every demo count.",
        ],
        "lines": [
            _line("video_action", 0.0, (52.0, 38.0, 71.0), (196.0, 140.0, 290.0), None, 0.56),
            _line("video_action", 1.0, (17.0, 11.0, 24.0), (79.0, 52.0, 118.0), (2.3, 1.4, 4.0), 0.69),
            _line("diffusion_policy", 0.0, (84.0, 60.0, 122.0), (None, 240.0, None), None, 0.44),
        ],
        "points": points,
        "arms": arms,
        "comparisons": [
            _comparison(
                "30 demos + 1 action-free per demo",
                "30 demos",
                0.19,
                0.09,
                0.29,
                44,
                15,
                0.0002,
                0.001,
                "better",
            ),
            _comparison(
                "300 demos + 1 action-free per demo",
                "300 demos",
                0.04,
                -0.05,
                0.13,
                12,
                8,
                0.5,
                1.0,
                "no evidence of a difference",
            ),
            _comparison(
                "10 demos without video (diffusion policy)",
                "10 demos with video",
                -0.1,
                -0.18,
                -0.02,
                9,
                24,
                0.014,
                0.042,
                "worse",
            ),
        ],
        "video": _video(arms),
        "protocol_facts": [
            ["tasks", "Lift, PickPlaceCan"],
            ["episodes per task", "25, the same scenes for every checkpoint"],
            ["horizon", "400 control steps (20 s at 20 Hz)"],
            ["success rule", "done once, at any step"],
            ["seeds", "0, 1, 2"],
            ["search", "grid"],
            ["rendering", "EGL, pictures as the reference's"],
        ],
        "provenance": [
            ["data", "s3://robot-data/lift, version 12, sha256 4c1f0a9be2d7"],
            ["code", "demoscale 0.2.0, 31a1a9e"],
            ["packages", "torch 2.13.0, diffusers 0.42.1, robosuite 1.5.2, mujoco 3.9.0"],
            ["tracked in", "https://reader:hunter2@mlflow.example.org"],
            ["when", "2026-11-23 10:00 UTC"],
        ],
    }


def bare() -> dict[str, Any]:
    """Return one arm, one seed, one task; no costs, no films, no comparison."""
    low, high = wilson(17, 25)
    counted = {"successes": 17, "episodes": 25, "low": low, "high": high}
    own = {
        "policy": "video_action",
        "action_free_ratio": 0.0,
        "demo_count": 4,
        "errors": 0,
        "early": False,
        "cost": None,
        **counted,
    }
    return {
        "name": "quickstart",
        "protocol": "6b82c47c0ff95b91",
        "caption": "Wilson 95 % intervals; one seed, so no spread between seeds is known.",
        "answer": ["No evidence: one demo count makes no curve. 4 demos: 17/25 = 0.68 [0.48, 0.83]."],
        "lines": [_line("video_action", 0.0, None, None, None, None)],
        "points": [
            own
            | {
                "success_rate": 0.68,
                "band_low": None,
                "band_high": None,
                "seeds": 1,
                "missing_seeds": [],
                "by_task": {"Lift": counted},
            }
        ],
        "arms": [own | {"arm": "demos-4_ratio-0_seed-0", "seed": 0, "step": 1000, "run_id": "0" * 32}],
        "comparisons": [],
        "video": None,
        "protocol_facts": [["tasks", "Lift"]],
        "provenance": [["code", "demoscale 0.2.0"]],
    }


def films(mp4: bytes) -> list[RolloutVideo]:
    """Return a success and a failure of both tasks."""
    arm = "demos-100_ratio-1_seed-0"
    return [
        {
            "arm": arm,
            "episode": f"{task}-100001{n}-0",
            "result": result,
            "caption": f"{task}: 100 demos + 1 action-free per demo, seed 0",
            "mp4": mp4,
        }
        for task in TASKS
        for n, result in enumerate(("success", "failure"))
    ]


def _counts(successes: int, episodes: int = EPISODES) -> dict[str, Any]:
    successes = max(0, min(episodes, successes))
    low, high = wilson(successes, episodes)
    return {"successes": successes, "episodes": episodes, "low": low, "high": high}


def _cost(demos: int, ratio: float) -> dict[str, float]:
    hours = 1.5 + demos * (1 + ratio) / 40
    return {"gpu_hours": hours, "cpu_hours": 8 * hours, "episodes": 50, "control_steps": 14_321, "money": 0.0}


def _line(policy: str, ratio: float, half: Any, most: Any, worth: Any, area: float | None) -> dict[str, Any]:
    def reach(rate: float, found: Any) -> dict[str, Any]:
        demos, low, high = found
        ends = f"{low:.0f} to {high:.0f}" if high else f"{low:.0f} or more"
        text = f"{rate:.2f}: {demos:.0f} demos ({ends})" if demos else f"{rate:.2f}: not reached ({ends})"
        return {"rate": rate, "demos": demos, "low": low, "high": high, "text": text}

    return {
        "policy": policy,
        "action_free_ratio": ratio,
        "label": LINES[policy, ratio][0],
        "dashed": policy != "video_action",
        "area": None if area is None else {"value": area, "low": area - 0.03, "high": area + 0.03},
        "reach": [reach(rate, found) for rate, found in ((0.5, half), (0.8, most)) if found],
        "worth": (
            worth
            and dict(zip(("value", "low", "high"), worth, strict=True))
            | {"text": "{} times the demos ({} to {})".format(*worth)}
        ),
    }


def _comparison(
    first: str,
    second: str,
    difference: float,
    low: float,
    high: float,
    only_first: int,
    only_second: int,
    p: float,
    corrected: float,
    verdict: str,
) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        "difference": difference,
        "low": low,
        "high": high,
        "episodes": 150,
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p,
        "p_corrected": corrected,
        "verdict": verdict,
        "text": f"{first} against {second}: {verdict}",
    }


def _video(arms: list[dict[str, Any]]) -> dict[str, Any]:
    points, episodes = [], []
    for place, arm in enumerate(a for a in arms if a["policy"] == "video_action"):
        rate = arm["successes"] / arm["episodes"]
        distance = 0.42 - 0.3 * rate + 0.02 * (place * 7 % 5 - 2)
        points.append(
            {
                "arm": arm["arm"],
                "step": arm["step"],
                "success_rate": rate,
                "video_psnr": 18 + 9 * rate,
                "video_ssim": 0.5 + 0.4 * rate,
            }
            | {"video_distance": distance}
        )
        for n in range(8):
            result = "success" if n < 8 * rate else "failure"
            spread = distance + 0.015 * (n * 5 % 8 - 4) - (0.03 if result == "success" else 0)
            episodes.append(
                {
                    "arm": arm["arm"],
                    "episode": f"{TASKS[n % 2]}-100000{n}-0",
                    "task": TASKS[n % 2],
                    "result": result,
                    "distance": spread,
                }
            )
    return {
        "measure": "mean latent distance",
        "points": points,
        "correlation": {
            "rho": -0.91,
            "low": -0.97,
            "high": -0.74,
            "number": len(points),
            "text": "Spearman's rho -0.91 (95 % -0.97 to -0.74), 23 checkpoints.",
        },
        "episodes": episodes,
        "text": "Checkpoints whose imagination lies nearer to what then happened succeed more often.",
    }
