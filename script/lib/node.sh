# shellcheck shell=bash disable=SC2154  # the launcher sets the variables: see payload in nodes.sh
# What runs on each node of a job. lib/nodes.sh sends these functions, with the job's variables, to
# a bash there through its standard input; `main` must be the last line it sends, because a cut-off
# text then runs nothing. After that line the input goes on: a line now and then says that the
# launcher is there, "stop" has the ranks drain, and the end of the input is the end.

WAITS_FOR_LAUNCHER_S=60

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Node and endpoint under Slurm, which says here, not where srun was called, who is who.
place_by_slurm() {
    node_index=${SLURM_NODEID:-0}
    node_name=${SLURMD_NODENAME:-node$node_index}
    num_nodes=${SLURM_STEP_NUM_NODES:-$num_nodes}
    local nodes=${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-localhost}} first
    # The first of "gpu[03-05,9]" is gpu03, that of "a1,b[2-3]" is a1.
    [[ $nodes =~ ^([^][,]+)(\[([^],-]+)[^]]*\]([^,]*))? ]]
    first=${BASH_REMATCH[1]}${BASH_REMATCH[3]:-}${BASH_REMATCH[4]:-}
    # Job and step make the port and the name, so that two jobs on one node do not meet.
    job="slurm-${SLURM_JOB_ID:-0}.${SLURM_STEP_ID:-0}"
    endpoint=${endpoint:-$first:$((22000 + (${SLURM_JOB_ID:-0} * 7 + ${SLURM_STEP_ID:-0}) % 10000))}
    peers=("$first" ${SLURM_LAUNCH_NODE_IPADDR:+"$SLURM_LAUNCH_NODE_IPADDR"})
}

# Find the caller's torchrun, and the Python beside it.
find_torchrun() {
    local torchrun
    PATH=${VIRTUAL_ENV:+$VIRTUAL_ENV/bin:}${caller_path:+$caller_path:}$PATH
    torchrun=$(command -v torchrun) ||
        fail "no torchrun on this node's PATH ($PATH): activate the environment that has torch, at the same path on each node"
    python=$(dirname "$torchrun")/python3
    [ -x "$python" ] || python=python3
}

# Print this node's address on the way to the first peer that lies outside it. Nothing is sent.
own_address() { # PEER...
    "$python" -c '
import socket, sys

found = ""
for peer in sys.argv[1:]:
    try:
        places = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)
    except OSError:
        continue
    for family, kind, protocol, _, place in places:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)
            except OSError:
                continue
            found = probe.getsockname()[0]
        if not found.startswith(("127.", "::1")):
            break
    else:
        continue
    break
print(found)
sys.exit(not found)
' "$@" </dev/null || fail "no way from this node to any of: $*"
}

# Print "meet ADDRESS PORT": where the nodes meet. The port lies below those that the system gives away
# by itself, and nobody listens there now.
meeting_point() {
    local address port _
    find_torchrun
    address=$(own_address "${peers[@]}") || exit 1
    for _ in {1..100}; do
        port=$((22000 + (RANDOM * 32768 + RANDOM) % 10000))
        (: <"/dev/tcp/$address/$port") 2>/dev/null && continue
        echo "meet $address $port"
        return
    done
    fail "found no free port between 22000 and 31999"
}

# Torch gives the ranks to nodes in the order of these texts, and the first one's is the address
# where all ranks meet: so the head is its address, and the others follow it by number.
local_name() {
    local address
    address=$(own_address "${peers[@]}") || exit 1
    if [ "$node_index" -eq 0 ]; then
        echo "$address"
    else
        printf 'node-%05d.%s\n' "$node_index" "$address"
    fi
}

run_torchrun() {
    local name pid is_host=0
    exec 3<&0 </dev/null
    trap : TERM HUP INT # the launcher's word ends the job; Slurm signals torchrun by itself
    cd "$folder" 2>/dev/null || fail "no folder $folder on this node: the working directory must be the same path on each"
    find_torchrun
    name=$(local_name) || exit 1
    [ "$node_index" -ne 0 ] || is_host=1
    torchrun --nnodes "$num_nodes" --nproc_per_node "$ranks_per_node" \
        --rdzv_backend c10d --rdzv_endpoint "$endpoint" --rdzv_id "$job" \
        --rdzv_conf "is_host=$is_host,read_timeout=300" --local-addr "$name" \
        "${command[@]}" 3<&- &
    pid=$!
    watch_torchrun "$pid"
    wait "$pid"
}

# Follow the launcher's words until torchrun ends; no rank outlives it.
watch_torchrun() { # PID
    local word status rank ranks=() last_heard=$SECONDS
    while kill -0 "$1" 2>/dev/null; do
        IFS= read -r -t 0.5 -u 3 word
        status=$?
        note_ranks "$1"
        if [ $status -eq 0 ]; then
            last_heard=$SECONDS
            # The ranks are asked themselves: asked in their place, torchrun prints a trace and fails
            # however well they end. While it has none, it is asked.
            [ "$word" != stop ] || kill -TERM "${ranks[@]:-$1}" 2>/dev/null
        elif [ $status -le 128 ] || [ $((SECONDS - last_heard)) -gt $WAITS_FOR_LAUNCHER_S ]; then
            kill_tree "$1"
        fi
    done
    for rank in "${ranks[@]}"; do # there are some if torchrun was killed
        kill_tree "$rank"
    done
}

# Keep torchrun's children, where it still has any, in the array ranks.
note_ranks() { # PID
    local now
    read -r -a now <"/proc/$1/task/$1/children"
    [ ${#now[@]} -eq 0 ] || ranks=("${now[@]}")
} 2>/dev/null

# Kill a process and all below it; stopped first, or it could start more meanwhile.
kill_tree() { # PID
    local child children
    kill -STOP "$1" 2>/dev/null
    read -r -d '' -a children < <(cat "/proc/$1/task"/*/children 2>/dev/null)
    for child in ${children[@]+"${children[@]}"}; do
        kill_tree "$child"
    done
    kill -KILL "$1" 2>/dev/null
}

# Run torchrun with the node's name before each line of both its streams; its exit code.
run_with_name() {
    local mark="s|^|[$node_name] |"
    {
        {
            run_torchrun 2>&4 4>&- 5>&- | sed -u "$mark" >&5 4>&-
            exit "${PIPESTATUS[0]}"
        } 4>&1 | sed -u "$mark" >&2 5>&-
        exit "${PIPESTATUS[0]}"
    } 5>&1
}
