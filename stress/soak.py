"""Test of a rollout process's memory and open files, which must not grow over thousands of episodes.

    python -m stress.soak                 5,000 episodes, a quarter of an hour on two cores
    python -m stress.soak --quick         300

Two workers that are not replaced play short episodes of Lift, with two policy observations each. Exit code 1
if memory or open files grew.
"""

import json
import sys

import click

from orchestrator.testing.fake_policy_server import FakePolicyServer
from orchestrator.testing.processes import titled_processes
from orchestrator.testing.servo import cameras, servo
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec

WORKERS = 2
RULES = EpisodeRules(horizon=20, settle=0)
MOST_GROWTH_MIB, MOST_FILES = 32, 4


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
def main(quick: bool) -> None:
    """Print a line every so often and, last, one line of JSON."""
    import ray

    from orchestrator.cluster.ray_runtime import connect, quiet
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.ray_policy_client import RayServedPolicy
    from sim_workers.rollout.worker import RolloutJob

    quiet()
    connect()
    episodes, every = (300, 50) if quick else (5000, 250)
    server = ray.remote(FakePolicyServer).options(num_cpus=0).remote(servo)
    pool, source, contract = (
        RolloutPool(WORKERS, num_cpus=0.1, episodes_per_process=episodes + 1),
        RayServedPolicy((server,), "servo"),
        cameras("fast"),
    )
    for i in range(episodes):
        pool.submit(RolloutJob(EpisodeSpec("Lift", i, i), RULES, contract, source))
    print(f"{'episodes':>9}{'MiB each':>16}{'open files each':>18}")
    seen: list[tuple[float, int]] = []
    for number, (_, outcome, _) in enumerate(pool.results(), 1):
        assert outcome.result != "error", outcome.message
        if number % every == 0:
            workers = titled_processes("ray::RolloutWorker")
            mib, opened = [p.memory_info().rss / 2**20 for p in workers], [p.num_fds() for p in workers]
            seen.append((max(mib), max(opened)))
            print(
                f"{number:>9}{' '.join(f'{m:.0f}' for m in mib):>16}{' '.join(map(str, opened)):>18}",
                flush=True,
            )
    pool.close()
    rss, files = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
    print(
        json.dumps(
            {
                "bench": "soak",
                "episodes": episodes,
                "growth_mib": round(rss, 1),
                "growth_files": files,
                "quick": quick,
            }
        )
    )
    sys.exit(rss > MOST_GROWTH_MIB or files > MOST_FILES or bool(pool.usage.replaced))


if __name__ == "__main__":
    main()
