"""deploy/slurm.sh with a fake SLURM, and in the full round on a real SLURM of two nodes, where that is
installed. Fakes of Ray and the driver log their arguments in both.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slurm_cluster

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

PROJECT = {
    ".venv/bin/ray": (
        """
[[ -n ${RAY_DEAF:-} ]] && trap '' TERM || trap 'echo "ray ended" >> "$LOG"; exit 0' TERM
echo "ray $* with $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> "$LOG"
while :; do sleep 0.1; done
"""
    ),
    ".venv/bin/python": (
        """
if [[ $1 = -c ]]; then echo 0123456789abcdef0123456789abcdef; exit; fi
if [[ $1 = - ]]; then
    echo "nodes wanted: $2" >> "$LOG"
    until [[ $(grep -c "^ray start" "$LOG") -ge $((${RAY_STEPS:-2} * (1 + ${SLURM_RESTART_COUNT:-0}))) ]]; do sleep 0.1; done
    exit
fi
trap 'echo "driver heard Ctrl-C" >> "$LOG"; sleep 0.5; exit ${DRIVER_STATUS:-130}' INT
[[ -z ${DRIVER_DEAF:-} ]] || trap 'echo "driver heard Ctrl-C" >> "$LOG"' INT
echo "driver at $RAY_ADDRESS, $RAY_AUTH_MODE $RAY_AUTH_TOKEN: $*" >> "$LOG"
[[ $2 != jobs.sweep || $3 != wrong.yaml ]] || exit 2
[[ ${SLURM_RESTART_COUNT:-0} = 0 ]] || exit 0
while :; do sleep 0.1; done
"""
    ),
}
SLURM = {
    "bin/hostname": 'echo "${OWN:-10.0.0.1 fe80::1} "',
    "bin/getent": (
        'echo "getent $*" >> "$LOG"; for address in ${RESOLVED:-10.0.0.1}; do echo "$address STREAM $2"; done'
    ),
    "bin/scontrol": (
        """
echo "scontrol $*" >> "$LOG"
case "$*" in
    "show hostnames"*) printf "node%s\\n" ${NODES:-1 2 3};;
    *"show node"*) echo "NodeName=$4 Arch=x86_64 NodeAddr=$4.site NodeHostName=$4 Port=6818";;
    *"show job"*) echo "JobId=$4 JobName=demoscale JobState=${STATE:-RUNNING} Reason=None";;
esac
"""
    ),
    "bin/srun": 'echo "srun $*" >> "$LOG"; while [[ $1 = -* ]]; do shift; done; exec "$@"',
}


def checkout(folder: Path, programs: dict[str, str]) -> Path:
    """Make a folder that the script takes for the project, with these programs in it."""
    for name, text in programs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    shutil.copytree(DEPLOY, folder / "deploy")
    return folder


def wait_for(said: Callable[[], list[str]], start: str) -> None:
    deadline = time.monotonic() + 60
    while not any(line.startswith(start) for line in said()):
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)


class Job:
    """The script, as SLURM starts it on the first of three nodes."""

    def __init__(
        self, folder: Path, *arguments: str, srun: str = SLURM["bin/srun"], **variables: str
    ) -> None:
        checkout(folder, PROJECT | SLURM | {"bin/srun": srun})
        self.log = folder / "log"
        environment = {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "LOG": str(self.log),
            "SLURM_SUBMIT_DIR": str(folder),
        }
        environment |= {
            "SLURM_JOB_ID": "123",
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_GPUS_ON_NODE": "4",
        }
        self.process = subprocess.Popen(
            [str(DEPLOY / "slurm.sh"), *arguments],
            env=environment | variables,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, start: str) -> None:
        wait_for(self.said, start)
        time.sleep(0.5)  # the script has set its traps

    def end(self) -> tuple[int, str]:
        """Return exit status and standard error."""
        _, error = self.process.communicate(timeout=60)
        return self.process.returncode, error


def test_slurm_warning_interrupts_the_driver_once_and_requeues_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, "my sweep.yaml", "--set", "seeds=[0, 1]")
    job.wait_for("driver at")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end()[0] == 130
    said = job.said()
    assert "nodes wanted: 3" in said
    assert (
        "driver at 10.0.0.1:20123, token 0123456789abcdef0123456789abcdef: -m jobs.sweep my sweep.yaml --set"
        " seeds=[0, 1]" in said
    )
    assert said.count("driver heard Ctrl-C") == 1
    assert said.count("scontrol requeue 123") == 1
    assert said.count("ray ended") == 2
    # A node that does not stop must not cost the requeueing.
    assert said.index("driver heard Ctrl-C") < said.index("scontrol requeue 123") < said.index("ray ended")
    head, workers = sorted(
        (line for line in said if line.startswith("srun") and "ray-start.sh" in line),
        key=lambda line: "--head" not in line,
    )
    assert "--nodes=1 --ntasks=1 --nodelist=node1 deploy/ray-start.sh" in head
    assert "--node-ip-address=10.0.0.1 --port=20123" in head
    assert "--nodes=2 --ntasks=2 --nodelist=node2,node3 deploy/ray-start.sh" in workers
    assert "--num-cpus=32 --num-gpus=4 --address=10.0.0.1:20123" in workers


def test_slurm_signal_before_the_driver_runs_requeues_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep.yaml", RAY_STEPS="3")
    job.wait_for("nodes wanted")
    sent = time.monotonic()
    job.process.send_signal(signal.SIGUSR1)
    assert job.end()[0] == 130
    assert time.monotonic() - sent < 50
    assert job.said().count("scontrol requeue 123") == 1
    assert not [line for line in job.said() if line.startswith("driver")]


@pytest.mark.full
def test_slurm_driver_that_does_not_stop_is_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep.yaml", DRIVER_DEAF="1")
    job.wait_for("driver at")
    job.process.terminate()
    status, error = job.end()
    assert status == 143
    assert "did not stop within 20 s" in error
    assert job.said().count("scontrol requeue 123") == 1


def test_slurm_job_terminated_while_running_is_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep.yaml")
    job.wait_for("driver at")
    job.process.terminate()
    assert job.end()[0] == 143
    assert job.said().count("driver heard Ctrl-C") == 1
    assert job.said().count("scontrol requeue 123") == 1
    assert job.said().count("ray ended") == 2


@pytest.mark.parametrize("state", ["CANCELLED", pytest.param("COMPLETING", marks=pytest.mark.full)])
def test_slurm_job_cancelled_is_not_requeued_and_leaves_no_process(tmp_path: Path, state: str) -> None:
    job = Job(tmp_path, "sweep.yaml", STATE=state)
    job.wait_for("driver at")
    job.process.terminate()
    assert job.end()[0] == 143
    assert job.said().count("ray ended") == 2
    assert "scontrol requeue 123" not in job.said()


def test_slurm_sweep_that_finishes_at_the_warning_is_not_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep.yaml", DRIVER_STATUS="0")
    job.wait_for("driver at")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end()[0] == 0
    assert "scontrol requeue 123" not in job.said()


def test_slurm_job_has_the_exit_code_of_the_sweep(tmp_path: Path) -> None:
    job = Job(tmp_path, "wrong.yaml")
    assert job.end()[0] == 2
    assert "scontrol requeue 123" not in job.said()
    assert job.said().count("ray ended") == 2


@pytest.mark.full
def test_slurm_node_that_does_not_stop_does_not_block_the_job(tmp_path: Path) -> None:
    started = time.monotonic()
    job = Job(tmp_path, "wrong.yaml", RAY_DEAF="1")
    assert job.process.wait(60) == 2
    assert time.monotonic() - started < 40
    assert "ray ended" not in job.said()


def test_slurm_script_without_a_sweep_file_prints_its_usage(tmp_path: Path) -> None:
    status, error = Job(tmp_path).end()
    assert status == 2
    assert "sbatch deploy/slurm.sh SWEEP_FILE" in error


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        # The node's name as another node resolves it, among several addresses of its own.
        ({"OWN": "172.17.0.1 10.0.0.7 fd00::7", "RESOLVED": "10.0.0.7"}, "10.0.0.7"),
        # /etc/hosts of stock Debian gives the loopback address even to another node's question: the only
        # address that is not loopback.
        ({"OWN": "10.0.0.7 fd00::7", "RESOLVED": "127.0.1.1"}, "10.0.0.7"),
        pytest.param(
            {"OWN": "127.0.1.1 10.0.0.7", "RESOLVED": "127.0.1.1"}, "10.0.0.7", marks=pytest.mark.full
        ),
        # An address in front of a router is none that Ray can bind.
        pytest.param({"OWN": "10.0.0.7", "RESOLVED": "203.0.113.7"}, "10.0.0.7", marks=pytest.mark.full),
        pytest.param(
            {"OWN": "172.17.0.1 10.0.0.7", "RESOLVED": "127.0.1.1", "DEMOSCALE_HEAD_ADDRESS": "10.0.0.7"},
            "10.0.0.7",
            marks=pytest.mark.full,
        ),
        ({"OWN": "fd00::7", "NODES": "1", "RAY_STEPS": "1"}, "127.0.0.1"),
    ],
)
def test_slurm_head_address_is_reachable_from_other_nodes(
    tmp_path: Path, variables: dict[str, str], address: str
) -> None:
    job = Job(tmp_path, "wrong.yaml", **variables)
    status, error = job.end()
    assert status == 2, error
    assert any(line.startswith(f"driver at {address}:20123,") for line in job.said())
    if "NODES" not in variables and "DEMOSCALE_HEAD_ADDRESS" not in variables:
        assert any("--nodelist=node2 getent ahostsv4 node1.site" in line for line in job.said()), (
            "another node is asked"
        )


def test_slurm_head_address_that_is_unknown_is_an_error_before_ray_starts(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep.yaml", OWN="172.17.0.1 10.0.0.7", RESOLVED="127.0.1.1")
    status, error = job.end()
    assert status == 1
    assert "no address of node1 is known to node2; export DEMOSCALE_HEAD_ADDRESS" in error
    assert not [line for line in job.said() if line.startswith("ray")]


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_MODE=disabled",
        pytest.param("RAY_AUTH_TOKEN=", marks=pytest.mark.full),
        pytest.param("RAY_AUTH_TOKEN_PATH=/nowhere", marks=pytest.mark.full),
    ],
)
def test_slurm_credentials_file_cannot_disable_the_token(tmp_path: Path, line: str) -> None:
    (tmp_path / ".demoscale.env").write_text(f"{line}\nMLFLOW_TRACKING_TOKEN=x\n")
    job = Job(tmp_path, "wrong.yaml")
    assert job.end()[0] == 2
    assert [line.endswith("with token 32") for line in job.said() if line.startswith("ray start")] == [
        True,
        True,
    ]


@pytest.mark.full
def test_slurm_node_that_ends_during_the_start_ends_the_job(tmp_path: Path) -> None:
    """This srun does not pass the environment on, so deploy/ray-start.sh refuses."""
    job = Job(
        tmp_path,
        "sweep.yaml",
        srun=SLURM["bin/srun"].replace("exec", "[[ $1 = getent ]] || unset RAY_AUTH_TOKEN; exec"),
    )
    status, error = job.end()
    assert status == 1
    assert "ray-start.sh: Ray was not started: there is no token" in error
    assert "a Ray node ended before all 3 had joined" in error
    assert not [line for line in job.said() if line.startswith(("ray", "driver"))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Slurm]:
    if slurm_cluster.MISSING:
        pytest.skip(
            f"no {', '.join(slurm_cluster.MISSING)}: apt-get install --no-install-recommends slurmctld slurmd"
            " slurm-client munge"
        )
    with slurm_cluster.slurm() as running:
        yield running


class RealJob:
    """The script, submitted to a real SLURM of two nodes."""

    def __init__(self, cluster: slurm_cluster.Slurm, folder: Path, *options: str) -> None:
        self.cluster, self.log = cluster, checkout(folder, PROJECT) / "log"
        cluster.environment.update(LOG=str(self.log), HOME=str(folder), DEMOSCALE_HEAD_ADDRESS="")
        # What this SLURM does not have: GPUs, 32 cores, a third node.
        small = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10"]
        self.number = cluster.run(
            "sbatch", "--parsable", *small, *options, "deploy/slurm.sh", "sweep.yaml", cwd=folder
        )
        self.output = folder / f"demoscale-{self.number}.log"
        self.wait_for("driver at")
        time.sleep(0.5)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, start: str) -> None:
        wait_for(self.said, start)

    def wait_for_state(self, *states: str) -> None:
        deadline = time.monotonic() + 90
        while (state := self.cluster.state(self.number)) not in states:
            assert time.monotonic() < deadline, f"{state}\n{self.said()}\n{self.output.read_text()}"
            time.sleep(0.2)


@pytest.mark.full
@pytest.mark.xdist_group("slurm")
class TestRealSlurm:
    @pytest.mark.parametrize("name", ["USR1", "TERM"])
    def test_real_slurm_job_signalled_is_requeued_and_finishes(
        self, cluster: slurm_cluster.Slurm, tmp_path: Path, name: str
    ) -> None:
        job = RealJob(cluster, tmp_path)
        driver = next(line for line in job.said() if line.startswith("driver at"))
        assert not driver.startswith("driver at 127."), (
            "nodes of a cluster do not reach each other through loopback"
        )
        starts = [line for line in job.said() if line.startswith("ray start")]
        assert sorted(re.findall("--head|--address", " ".join(starts))) == [
            "--address",
            "--head",
        ], "one Ray on each node"
        cluster.run("scancel", f"--signal={name}", "--batch", job.number)
        job.wait_for_state("PENDING")
        assert job.said().count("driver heard Ctrl-C") == 1
        assert job.said().count("ray ended") == 2
        # SLURM keeps a job that was queued again for two minutes.
        cluster.run("scontrol", "update", f"JobId={job.number}", "StartTime=now")
        job.wait_for_state("COMPLETED")
        assert len([line for line in job.said() if line.startswith("driver at")]) == 2

    def test_real_slurm_job_cancelled_is_not_requeued(
        self, cluster: slurm_cluster.Slurm, tmp_path: Path
    ) -> None:
        job = RealJob(cluster, tmp_path)
        cluster.run("scancel", job.number)
        job.wait_for_state("CANCELLED")
        assert job.said().count("ray ended") == 2
        assert cluster.state(job.number) == "CANCELLED"
        assert len([line for line in job.said() if line.startswith("driver at")]) == 1
