"""deploy/slurm.sh, run for real: stand-ins for SLURM, Ray and the driver write down what they are told. It has not met a SLURM."""

import os
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "deploy/slurm.sh"

STUBS = {
    "bin/hostname": "echo 10.0.0.1 fe80::1",
    "bin/scontrol": 'echo "scontrol $*" >> "$LOG"; if [[ $1 = show ]]; then printf "node1\\nnode2\\nnode3\\n"; fi',
    "bin/srun": 'echo "srun $*" >> "$LOG"; while [[ $1 = -* ]]; do shift; done; exec "$@"',
    ".venv/bin/ray": """trap 'echo "ray ended" >> "$LOG"; exit 0' TERM; echo "ray started" >> "$LOG"; while :; do sleep 0.1; done""",
    ".venv/bin/python": """
if [[ $1 = -c ]]; then echo a-token; exit; fi
if [[ $1 = - ]]; then
    echo "nodes wanted: $2" >> "$LOG"
    until [[ $(grep -c "ray started" "$LOG") = 2 ]]; do sleep 0.1; done
    exit
fi
trap 'echo "driver heard Ctrl-C" >> "$LOG"; sleep 0.5; exit 130' INT
echo "driver at $RAY_ADDRESS, $RAY_AUTH_MODE $RAY_AUTH_TOKEN: $*" >> "$LOG"
[[ $2 != jobs.sweep || $3 != wrong.yaml ]] || exit 2
while :; do sleep 0.1; done
""",
}


class Job:
    """The script, as SLURM starts it on the first of three nodes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        for name, text in STUBS.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        self.log = folder / "log"
        environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "LOG": str(self.log), "SLURM_SUBMIT_DIR": str(folder)}
        environment |= {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4"}
        self.process = subprocess.Popen([str(SCRIPT), *arguments], env=environment, stderr=subprocess.PIPE, text=True)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, start: str) -> None:
        deadline = time.monotonic() + 60
        while not any(line.startswith(start) for line in self.said()):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)


def test_it_is_a_shell_script() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_warned_of_the_end_it_asks_once_cleans_up_and_queues_itself_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "my sweep.yaml", "--set", "seeds=[0, 1]")
    job.wait_for("driver at")
    time.sleep(0.5)  # the script has begun to listen
    job.process.send_signal(signal.SIGUSR1)
    assert job.process.wait(60) == 130
    said = job.said()
    assert "nodes wanted: 3" in said
    assert "driver at 10.0.0.1:20123, token a-token: -m jobs.sweep my sweep.yaml --set seeds=[0, 1]" in said
    assert said.count("driver heard Ctrl-C") == 1
    assert said.count("scontrol requeue 123") == 1
    assert said.count("ray ended") == 2
    head, workers = (line for line in sorted(said, key=lambda line: "--head" not in line) if line.startswith("srun"))
    assert "--nodelist=node1 ray start" in head
    assert "--node-ip-address=10.0.0.1 --port=20123" in head
    assert "--nodes=2 --nodelist=node2,node3 ray start" in workers
    assert "--num-cpus=32 --num-gpus=4 --address=10.0.0.1:20123" in workers


def test_a_sweep_that_ends_by_itself_ends_the_job_with_its_exit_code(tmp_path: Path) -> None:
    job = Job(tmp_path, "wrong.yaml")
    assert job.process.wait(60) == 2
    assert "scontrol requeue 123" not in job.said()
    assert job.said().count("ray ended") == 2


def test_cancelled_it_leaves_nothing_running(tmp_path: Path) -> None:
    job = Job(tmp_path, "sweep.yaml")
    job.wait_for("driver at")
    job.process.terminate()
    assert job.process.wait(60) == 143
    assert job.said().count("ray ended") == 2
    assert "scontrol requeue 123" not in job.said()


def test_without_a_sweep_file_it_says_how(tmp_path: Path) -> None:
    job = Job(tmp_path)
    _, complaint = job.process.communicate(timeout=60)
    assert job.process.returncode == 2
    assert "sbatch deploy/slurm.sh SWEEP_FILE" in complaint
