#!/bin/bash
# A sweep on SLURM: Ray's head on the first node of the allocation, a worker on every other, the driver on the head's node, and all of it gone at the end.
#
#   sbatch deploy/slurm.sh jobs/my_sweep.yaml [--set FIELD=VALUE ...]
#
# Two minutes before the time is up, SLURM sends USR1. The driver then gets one Ctrl-C: training saves its state, episodes in progress are finished. The
# job queues itself again, at the latest 90 s after the signal. TERM (a node that shuts down, a preemption) does the same within 20 s; a cancelled job
# (scancel) stays cancelled. The same command continues a sweep, so a killed job or a failed node costs time and nothing else.
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

refuse() {
    echo "slurm.sh: $*" >&2
    exit 1
}

[[ $# -ge 1 ]] || {
    echo "usage: sbatch deploy/slurm.sh SWEEP_FILE [--set FIELD=VALUE ...]" >&2
    exit 2
}
cd "${SLURM_SUBMIT_DIR:-$PWD}"
[[ -x deploy/ray-start.sh ]] || refuse "$PWD has no deploy/ray-start.sh; submit the job from the checkout"
if [[ -e ~/.demoscale.env ]]; then
    [[ -r ~/.demoscale.env ]] || refuse "the user $(id -u) cannot read ~/.demoscale.env; make it yours, with mode 600"
    set -a
    # shellcheck source=/dev/null
    source ~/.demoscale.env
    set +a
fi
PATH="$PWD/.venv/bin:$PATH"

# Other people's jobs may reach these nodes' ports, and any program that reaches Ray's runs code as you: a token for this job alone, in its environment
# alone. After the credentials, so that no line there can turn it off; deploy/ray-start.sh refuses to start a node without it.
unset RAY_AUTH_TOKEN_PATH
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

started=() driver=""

# The end of every way out: each `ray start --block` takes its node's processes with it. What is left after 20 s goes with the job; an srun that is
# stopped while it starts its step would otherwise keep the job until its time is up.
# shellcheck disable=SC2329 # a trap calls it
clean() {
    trap - EXIT
    trap '' TERM USR1
    [[ ${#started[@]} -gt 0 ]] || return 0
    kill "${started[@]}" 2>/dev/null || true
    local tenth
    for ((tenth = 0; tenth < 200; tenth++)); do
        [[ -n $(jobs -pr) ]] || return 0
        sleep 0.1
    done
    kill -KILL "${started[@]}" 2>/dev/null || true
}

# Stop in good order and queue the job again. Arguments: seconds for the driver, exit status.
# shellcheck disable=SC2329 # a trap calls it
stop() {
    trap '' TERM USR1
    local status=130 tenth state
    if [[ -n $driver ]]; then
        kill -INT "$driver" 2>/dev/null || true
        for ((tenth = 0; tenth < 10 * $1; tenth++)); do
            kill -0 "$driver" 2>/dev/null || break
            sleep 0.1
        done
        if kill -0 "$driver" 2>/dev/null; then
            echo "slurm.sh: the driver did not stop within $1 s of Ctrl-C; what it recorded is kept" >&2
        else
            status=0
            wait "$driver" || status=$?
        fi
    fi
    [[ $status -ne 0 ]] || exit 0 # the sweep was finished
    # Before Ray is stopped: SLURM ends the job's processes itself once it is queued again, and a node that hangs must not cost the place in the queue.
    # A job that SLURM ends already (scancel: CANCELLED or COMPLETING) stays ended.
    state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n 's/.* JobState=\([A-Z]*\).*/\1/p') || true
    if [[ ${state:-RUNNING} != RUNNING ]]; then
        echo "slurm.sh: SLURM calls the job $state, so it is not queued again" >&2
    else
        scontrol requeue "$SLURM_JOB_ID" || echo "slurm.sh: SLURM did not queue the job again; submit the same command" >&2
    fi
    exit "$2"
}
trap clean EXIT
trap 'stop 90 130' USR1
trap 'stop 20 143' TERM

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[[ ${#nodes[@]} -ge 1 ]] || refuse "scontrol names no node for SLURM_JOB_NODELIST=$SLURM_JOB_NODELIST"
# Each step names its number of tasks: srun would take it from the job, and start as many on fewer nodes.
step=(srun --overlap --ntasks-per-node=1 "--cpus-per-task=$SLURM_CPUS_PER_TASK")
ray_start=(deploy/ray-start.sh --block --disable-usage-stats "--num-cpus=$SLURM_CPUS_PER_TASK" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}")

# This node's IPv4 address as other nodes see it. Its own name will not do: /etc/hosts of a Debian node maps that to 127.0.1.1. So SLURM's address for
# the node is resolved on another node of the allocation, and has to be one of this node's own.
head_address() {
    local name own address
    mapfile -t own < <(hostname --all-ip-addresses | tr ' ' '\n' | grep -E '^[0-9]+(\.[0-9]+){3}$' | grep -v '^127\.')
    name=$(scontrol --oneliner show node "${nodes[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    if [[ ${#nodes[@]} -gt 1 ]]; then
        for address in $("${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[1]}" getent ahostsv4 "${name:-${nodes[0]}}" | cut -d ' ' -f 1 | sort -u); do
            [[ " ${own[*]} " != *" $address "* ]] || { echo "$address" && return; }
        done
        [[ ${#own[@]} -eq 1 ]] || return 1 # which of several the others reach is not known
    fi
    echo "${own[0]:-127.0.0.1}"
}
address=${DEMOSCALE_HEAD_ADDRESS:-$(head_address)} ||
    refuse "no address of ${nodes[0]} is known to ${nodes[1]}; export DEMOSCALE_HEAD_ADDRESS=ADDRESS in ~/.demoscale.env, or have NodeAddr set in slurm.conf"

# This script runs on the first node. Jobs that share a node need ports of their own.
RAY_ADDRESS="$address:$((20000 + SLURM_JOB_ID % 10000))"
export RAY_ADDRESS

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    "${ray_start[@]}" --head --node-ip-address="${RAY_ADDRESS%:*}" --port="${RAY_ADDRESS#*:}" --dashboard-host=127.0.0.1 &
started+=($!)
if [[ ${#nodes[@]} -gt 1 ]]; then
    others=$(IFS=, && echo "${nodes[*]:1}")
    # They wait for the head by themselves.
    "${step[@]}" "--nodes=$((${#nodes[@]} - 1))" "--ntasks=$((${#nodes[@]} - 1))" --nodelist="$others" "${ray_start[@]}" --address="$RAY_ADDRESS" &
    started+=($!)
fi

# A sweep measures the cluster once, when it starts, so it is not started before every node is there. In the background, since bash would keep a signal
# waiting for as long as a program in the foreground runs.
python - "${#nodes[@]}" <<'PYTHON' &
import sys
import time

import ray

wanted, deadline, there = int(sys.argv[1]), time.monotonic() + 600, 0
while there < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes joined Ray within ten minutes; their errors are above")
    time.sleep(2)
    try:
        ray.init(logging_level="ERROR", ignore_reinit_error=True)
        there = sum(node["Alive"] for node in ray.nodes())
    except Exception:  # the head is not there yet, and Ray reports that in many ways
        there = 0
PYTHON
gathering=$!
started+=("$gathering")
wait -n "${started[@]}" || true
! kill -0 "$gathering" 2>/dev/null || refuse "a Ray node ended before all ${#nodes[@]} had joined; its error is above"
wait "$gathering"

# Not through srun, which keeps signals to itself. Job control leaves Ctrl-C its meaning for what runs in the background.
set -m
python -m jobs.sweep "$@" &
driver=$!
set +m
started+=("$driver")

status=0
wait "$driver" || status=$?
exit "$status"
