#!/usr/bin/env bash
# A Ray cluster for the length of a Slurm job, and a study on it. From the project's root, on a login node:
#
#   sbatch cluster/slurm.sh                                                          the demo study
#   sbatch --nodes=4 --gpus-per-node=1 --time=12:00:00 cluster/slurm.sh \
#       jobs/full_study.py --config configs/paper.yaml --set train.gpus_per_worker=1 --set audit.gpus_per_actor=1
#
# What comes after the script's name are the job and its options. The project, its environment (.venv, or one that is
# active), recordings and results lie on a file system that all nodes mount. When the time is up, the study
# stops; the same `sbatch` goes on where it was. After a lost node Slurm sees to that. The log is slurm-<job>.out.
#
#SBATCH --job-name=faithad
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?start it with sbatch}"
[[ $# -gt 0 ]] || set -- jobs/full_study.py --config configs/demo.yaml
[[ ! -d .venv ]] || export PATH="$PWD/.venv/bin:$PATH"

# A token for this job alone, in the home folder, which all nodes mount and nobody else reads.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.faithad-token-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a node need not end what it does: the study goes on from its root
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
# Relative paths start at FAITHAD_HOME; all nodes see the folders in FAITHAD_SHARED.
export FAITHAD_HOME=${FAITHAD_HOME:-$PWD}
export FAITHAD_SHARED=${FAITHAD_SHARED:-$FAITHAD_HOME}
export FAITHAD_WAIT_S=${FAITHAD_WAIT_S:-0} # for no other machines: none will come

steps=()
# shellcheck disable=SC2329 # called by the trap
stop() {
    trap - EXIT INT TERM
    kill -TERM "${steps[@]}" 2> /dev/null || true
    wait
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip() { getent ahostsv4 "$1" | awk 'NR == 1 {print $1}'; }

# Ten ports for each node, others for each job: jobs may share a node.
first_port=$((20000 + SLURM_JOB_ID % 100 * 100))
address=$(ip "${nodes[0]}"):$first_port
# What runs on a node: Ray, in a folder that nobody else enters (Ray opens its own to all). Sockets live there, and
# their paths may not be long.
# shellcheck disable=SC2016 # expanded on the node
node='folder=$(mktemp -d /tmp/slurm-XXXXXX)
trap "rm -rf $folder" EXIT
trap "kill \$!; wait" TERM
ray start --block --temp-dir="$folder/ray" "$@" &
wait $!'
start() { # number of the node, options of `ray start`
    local number=$1 port=$((first_port + 10 * $1))
    shift
    srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --nodelist="${nodes[number]}" \
        bash -c "$node" node --node-ip-address="$(ip "${nodes[number]}")" \
        --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --node-manager-port=$((port + 1)) --object-manager-port=$((port + 2)) \
        --dashboard-agent-listen-port=$((port + 3)) --dashboard-agent-grpc-port=$((port + 4)) \
        --runtime-env-agent-port=$((port + 5)) --metrics-export-port=$((port + 6)) "$@" &
    steps+=($!)
}

start 0 --head --port="$first_port" --ray-client-server-port=$((first_port + 7)) \
    --dashboard-host=127.0.0.1 --dashboard-port=$((first_port + 8))
until ray health-check --address "$address" &> /dev/null; do
    kill -0 "${steps[0]}" # the head could not start: its own words are above
    sleep 1
done
for number in $(seq 1 $((${#nodes[@]} - 1))); do start "$number" --address="$address"; done

# A stage begins with the machines that are there.
python - "$address" "${#nodes[@]}" << 'END'
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
deadline = time.monotonic() + 300
while (there := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[2]):
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {sys.argv[2]} nodes joined Ray in five minutes")
    time.sleep(1)
END
echo "Ray has ${#nodes[@]} nodes at $address: python $*"

# In the background, so that a signal is answered at once.
RAY_ADDRESS=$address python "$@" &
steps+=($!)
wait $!
