#!/bin/bash
# A sweep on SLURM: Ray's head on the first node of the allocation, a worker on every other, the driver beside the head, and all of it gone at the end.
#
#   sbatch deploy/slurm.sh jobs/my_sweep.yaml [--set FIELD=VALUE ...]
#
# Two minutes before the time is up, SLURM sends USR1; the driver then gets one Ctrl-C: training saves its state, episodes in progress are finished, and
# the job queues itself again. The same command continues where it stopped, so killing it, or a node that fails, costs time and nothing else.
#
# From the checkout, with its .venv on a file system that every node sees; `data.episodes` and `storage` must be there too, or on S3. Credentials are
# read from ~/.demoscale.env (mode 600: AWS_ACCESS_KEY_ID=..., MLFLOW_TRACKING_TOKEN=...), never from here.
#SBATCH --job-name=demoscale
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=demoscale-%j.log

set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: sbatch deploy/slurm.sh SWEEP_FILE [--set FIELD=VALUE ...]" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-$PWD}"
[[ ! -f ~/.demoscale.env ]] || { set -a; . ~/.demoscale.env; set +a; }
PATH="$PWD/.venv/bin:$PATH"

# Other people's jobs may reach these nodes' ports, and whoever reaches Ray's runs code as you: a token for this job alone, known to its environment only.
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# This script runs on the first of them. Jobs that share a node need ports of their own.
RAY_ADDRESS="$(hostname --ip-address | cut -d ' ' -f 1):$((20000 + SLURM_JOB_ID % 10000))"
export RAY_ADDRESS
step=(srun --overlap --ntasks-per-node=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK")
ray_start=(ray start --block --disable-usage-stats "--num-cpus=$SLURM_CPUS_PER_TASK" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}")

started=()
clean() {
    trap - EXIT TERM USR1
    # Each `ray start --block` takes its node's processes with it; what is left then goes with the job.
    kill "${started[@]}" 2>/dev/null || true
    wait
}
trap clean EXIT
trap 'exit 143' TERM USR1

"${step[@]}" --nodes=1 --nodelist="${nodes[0]}" \
    "${ray_start[@]}" --head --node-ip-address="${RAY_ADDRESS%:*}" --port="${RAY_ADDRESS#*:}" --dashboard-host=127.0.0.1 &
started+=($!)
if [[ ${#nodes[@]} -gt 1 ]]; then
    others=$(IFS=,; echo "${nodes[*]:1}")
    # They wait for the head by themselves.
    "${step[@]}" --nodes=$((${#nodes[@]} - 1)) --nodelist="$others" "${ray_start[@]}" --address="$RAY_ADDRESS" &
    started+=($!)
fi

# A sweep measures the cluster once, when it starts, so it is not started before every node is there.
python - "${#nodes[@]}" <<'PYTHON'
import sys
import time

import ray

wanted, deadline, there = int(sys.argv[1]), time.monotonic() + 600, 0
while there < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes joined Ray within ten minutes; what the others say is above")
    time.sleep(2)
    try:
        ray.init(logging_level="ERROR", ignore_reinit_error=True)
        there = sum(node["Alive"] for node in ray.nodes())
    except Exception:  # the head is not there yet, and says so in many ways
        there = 0
PYTHON

# Not through srun, which keeps signals to itself. Job control leaves Ctrl-C its meaning for what runs in the background.
warned=0
set -m
python -m jobs.sweep "$@" &
driver=$!
trap 'warned=$((warned + 1)); kill -INT "$driver"' USR1
set +m
started+=("$driver")

while true; do
    before=$warned status=0
    wait "$driver" || status=$?
    [[ $warned != "$before" ]] || break # else a signal ended the waiting, not the driver
done
# 130: it stopped in good order, and there is more to do.
if [[ $warned -gt 0 && $status -eq 130 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
