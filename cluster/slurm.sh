#!/usr/bin/env bash
# A command of FedRobust on the nodes of a Slurm job, from a clone or any folder on a file system that all nodes share:
#
#   sbatch cluster/slurm.sh matrix experiments/robustness.yaml
#   sbatch --nodes=4 --cpus-per-task=32 --gpus-per-node=2 cluster/slurm.sh sweep experiments/tune_defense.yaml --resume
#
# The first node holds Ray's head and the driver, the others join it. mlruns/ lies in the folder it was submitted from. Set
# FEDROBUST_PYTHON to the environment's python where that is not .venv/bin/python. See docs/cluster.md.
#SBATCH --job-name=fedrobust
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --output=fedrobust-%j.log
#SBATCH --open-mode=append
# Before the time is up the driver is asked to stop, so that the last round is committed.
#SBATCH --signal=B:TERM@180
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch cluster/slurm.sh run|matrix|sweep FILE ..." >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$PWD}"
python=$(realpath -s "${FEDROBUST_PYTHON:-.venv/bin/python}")
[[ -x $python ]] || { echo "error: $python: no such program; set FEDROBUST_PYTHON" >&2; exit 2; }
PATH=$(dirname "$python"):$PATH

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
on_head=(srun --overlap --nodes=1 --ntasks=1 "--nodelist=$head")
address=$("${on_head[@]}" hostname --ip-address | tr ' ' '\n' | grep -v '^127\.' | head -n 1) || true
[[ -n $address ]] || { echo "error: $head has no address but that of the machine itself" >&2; exit 2; }
# Ports of the head that nobody listens on: other jobs, and other people's, may be on the same node.
read -r port client dashboard < <("${on_head[@]}" "$python" -c '
import socket

sockets = [socket.socket() for _ in range(3)]
for each in sockets:
    each.bind(("", 0))
print(*(each.getsockname()[1] for each in sockets))')

# A new token for each job, in a file that only its owner can read, and whose name nobody knows before.
umask 077 # srun hands it on: the sessions of all nodes, and what the run writes, are their owner's alone
mkdir -p mlruns
unset RAY_AUTH_TOKEN RAY_ADDRESS # those of other clusters, which sbatch has handed on
RAY_AUTH_TOKEN_PATH=$(mktemp "$PWD/mlruns/slurm-$SLURM_JOB_ID-XXXXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"

started=()
# shellcheck disable=SC2329 # the trap calls it
cleanup() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait "${started[@]}" 2>/dev/null || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap cleanup EXIT

# What a node does: Ray with its session in a folder that nobody else can have made, and that goes with it. The sockets in
# there have paths of 107 bytes at most.
# shellcheck disable=SC2016 # the node's shell is to read it
on_node='
umask 077
root=${TMPDIR:-/tmp}
[[ ${#root} -le 24 ]] || root=/tmp
place=$(mktemp -d "$root/fr-XXXXXXXX") || exit 1
"$@" "--temp-dir=$place/r" &
ray=$!
trap "kill $ray 2>/dev/null" TERM INT
code=0
wait "$ray" || code=$?
while kill -0 "$ray" 2>/dev/null; do wait "$ray" || code=$?; done
rm -rf "$place"
exit "$code"'
gpus=${SLURM_GPUS_ON_NODE:-0}
ray_start=(bash -c "$on_node" node ray start --block "--num-cpus=${SLURM_CPUS_PER_TASK:-1}" "--num-gpus=${gpus##*:}")
ray_start+=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)

"${on_head[@]}" "${ray_start[@]}" --head "--node-ip-address=$address" "--port=$port" \
    "--ray-client-server-port=$client" --dashboard-host=127.0.0.1 "--dashboard-port=$dashboard" &
started+=($!)
if [[ ${#nodes[@]} -gt 1 ]]; then
    sleep "${FEDROBUST_HEAD_START:-15}" # the head must answer first
    workers=$(IFS=, && echo "${nodes[*]:1}")
    srun --overlap "--nodes=$((${#nodes[@]} - 1))" "--ntasks=$((${#nodes[@]} - 1))" "--nodelist=$workers" \
        "${ray_start[@]}" "--address=$address:$port" &
    started+=($!)
fi

export RAY_ADDRESS=$address:$port
"$python" - "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

for _ in range(60):  # until all nodes are there
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
        break
    except Exception:
        time.sleep(5)
else:
    sys.exit("error: the head does not answer")
for _ in range(60):
    if (alive := sum(node["Alive"] for node in ray.nodes())) >= int(sys.argv[1]):
        sys.exit(0)
    time.sleep(2)
sys.exit(f"error: {alive} of {sys.argv[1]} nodes have joined the cluster")
PYTHON

driver=
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM INT
"$python" -m fedrobust.cli "$@" &
driver=$!
code=0
wait "$driver" || code=$?
if kill -0 "$driver" 2>/dev/null; then # the signal ended the wait, not the driver
    code=0
    wait "$driver" || code=$?
fi
exit "$code"
