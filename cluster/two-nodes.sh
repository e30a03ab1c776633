#!/usr/bin/env bash
# Two Ray nodes on this machine, and a job that runs on both: what a cluster does, without having one.
#
#   cluster/two-nodes.sh                                                  the demo study, into runs/demo
#   cluster/two-nodes.sh jobs/audit.py --config configs/audit.yaml        any other job
#
# An environment with faithad in it must be active. Each node has half of the cores and an address of its own on the
# loopback interface. The dashboard listens there alone; Ray's other ports listen everywhere, as they always do, and
# refuse who comes without the token, which is made here and goes with the nodes. Relative paths start at FAITHAD_HOME,
# by default the project's folder; both nodes see the folders in FAITHAD_SHARED, by default the same. What was started
# here is stopped at the end, by its process ids; any other Ray on this machine goes on. Started again, the study goes
# on where it was.
set -euo pipefail
set -m # a process group for whatever is started, so that it can be ended as a whole

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# -gt 0 ]] || set -- jobs/full_study.py --config configs/demo.yaml
command -v ray > /dev/null || {
    echo "There is no ray here. Activate the environment: source .venv/bin/activate" >&2
    exit 1
}

folder=$(mktemp -d /tmp/two-XXXXXX) # nobody else enters; sockets live below it, and their paths may not be long
started=()

# shellcheck disable=SC2329 # called by the trap
stop() {
    trap - EXIT INT TERM
    exec 2> /dev/null # what is gone already, and what bash says of what goes
    kill -TERM "${started[@]}" || true
    for _ in {1..50}; do
        kill -0 "${started[@]}" || break
        sleep 0.2
    done
    for one in "${started[@]}"; do kill -KILL -- "-$one" || true; done
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "$1 The nodes' own words:" >&2
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

read -r -a ports < <(
    python -c 'import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(7)]
print(*(probe.getsockname()[1] for probe in probes))'
)
address=127.0.0.2:${ports[0]} # Ray puts the machine's outer address in place of 127.0.0.1
dashboard=127.0.0.1:${ports[1]}

(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a node need not end what it does: the study goes on from its root
export FAITHAD_HOME=${FAITHAD_HOME:-$PWD}
export FAITHAD_SHARED=${FAITHAD_SHARED:-$FAITHAD_HOME}
export FAITHAD_WAIT_S=${FAITHAD_WAIT_S:-0} # for no other machines: none will come
unset RAY_ADDRESS

half=$(($(env -u OMP_NUM_THREADS nproc) / 2))
common=(--block --num-cpus="$((half > 0 ? half : 1))" --object-store-memory=500000000)

ray start --head "${common[@]}" --node-ip-address=127.0.0.2 --port="${ports[0]}" --temp-dir="$folder/1" \
    --dashboard-host=127.0.0.1 --dashboard-port="${ports[1]}" --ray-client-server-port="${ports[2]}" \
    --dashboard-agent-listen-port="${ports[3]}" --dashboard-agent-grpc-port="${ports[4]}" &> "$folder/1.log" &
started+=($!)
for _ in {1..60}; do
    ray health-check --address "$address" &> /dev/null && break
    kill -0 "${started[0]}" 2> /dev/null || fail "The head node did not start."
    sleep 0.5
done
ray start --address="$address" "${common[@]}" --node-ip-address=127.0.0.3 --temp-dir="$folder/2" \
    --dashboard-agent-listen-port="${ports[5]}" --dashboard-agent-grpc-port="${ports[6]}" &> "$folder/2.log" &
started+=($!)

# A stage begins with the machines that are there.
python - "$address" << 'END' || fail "The second node did not join."
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
deadline = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) < 2:
    if time.monotonic() > deadline:
        sys.exit(1)
    time.sleep(0.2)
END
echo "Two nodes of $((half > 0 ? half : 1)) cores at $address, dashboard at http://$dashboard"

# In the background, so that a signal is answered at once.
ray job submit --address "http://$dashboard" --working-dir . -- python "$@" &
started+=($!)
wait $!
