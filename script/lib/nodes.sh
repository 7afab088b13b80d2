# shellcheck shell=bash
# Sourced by the *_multi_node.sh scripts: start torchrun on every node, end all when one fails.
#
# A node gets everything (functions, environment, command) through the standard input of a bash
# there: no shell on the way reads a word of it, no list of processes shows it, and a node notices
# when its launcher is gone, because its input ends.
#
#   CHITU_LIKE_FORWARD    more variables for the nodes' environment: names or patterns, e.g. "AWS_* DEBUG"
#   CHITU_LIKE_ENDPOINT   ADDRESS:PORT of the first node where torchrun's processes meet

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=SCRIPTDIR/node.sh
. "$LIB/node.sh"

FORWARDED=(
    CONFIG_NAME PREPROCESS_AND_SAVE_DIR 'CHITU_LIKE_*' 'TORCH_*' 'PYTORCH_*' 'NCCL_*' 'GLOO_*'
    'TP_*' 'UCX_*' 'HF_*' 'OMP_*' 'MKL_*' 'TRITON_*' TOKENIZERS_PARALLELISM
)
JOB_VARIABLES=(
    node_index node_name num_nodes ranks_per_node endpoint job peers folder caller_path command
)
HEARTBEAT_S=10
PATIENCE_S=10 # for the other nodes to end, once one has failed

say() {
    printf '==> %s\n' "$*" >&2 || true # the terminal may be gone
}

mistake() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

usage() { # SYNOPSIS LINE...
    printf 'usage: %s %s\n' "$0" "$1" >&2
    printf '  %s\n' "${@:2}" >&2
    exit 2
}

check_count() { # WHAT TEXT
    [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || mistake "$1 must be a whole number above 0, not '$2'"
}

# Split "a,b,c" into the array hosts.
read_hosts() { # LIST
    local host
    IFS=, read -r -a hosts <<<"$1"
    [[ ${#hosts[@]} -gt 0 && $1 != *, && $1 != *$'\n'* ]] ||
        mistake "HOSTS must be a comma list such as node1,node2, not '$1'"
    for host in "${hosts[@]}"; do
        # A word that begins with a dash would be an option of ssh.
        [[ $host =~ ^[A-Za-z0-9_][A-Za-z0-9_.@:%-]*$ ]] || mistake "'$host' is no name of a host"
    done
}

# Print the name that ssh's configuration gives a host: the others do not know its alias.
address_of() { # HOST
    local key value found=${1##*@}
    while read -r key value; do
        [ "$key" != hostname ] || found=$value
    done < <(ssh -G "$1" 2>/dev/null </dev/null)
    echo "$found"
}

# Print how long torchrun may wait for its ranks after SIGTERM: a drain and ten seconds more.
shutdown_timeout_s() { # COMMAND...
    local word drain=25
    for word in "$@"; do
        if [[ $word =~ ^\+*serve\.drain_timeout_s=([0-9]{1,6})(\.[0-9]*)?$ ]]; then
            drain=$((10#${BASH_REMATCH[1]} + (${#BASH_REMATCH[2]} > 0)))
        fi
    done
    echo $((drain + 10))
}

# Print `export NAME=value` for each variable of ours that a pattern names.
exports() { # PATTERN...
    local name pattern
    while read -r name; do
        for pattern in "$@"; do
            # shellcheck disable=SC2053  # a pattern on purpose
            if [[ $name == $pattern ]]; then
                printf 'export %s=%q\n' "$name" "${!name}"
                break
            fi
        done
    done < <(compgen -e)
}

# Print what a bash on a node reads: functions, environment, variables, and last what to run.
payload() { # LAST-LINE VARIABLE...
    local more
    read -r -a more <<<"${CHITU_LIKE_FORWARD:-}"
    declare -p WAITS_FOR_LAUNCHER_S
    declare -f fail place_by_slurm find_torchrun own_address meeting_point local_name \
        run_torchrun watch_torchrun note_ranks kill_tree run_with_name
    exports "${FORWARDED[@]}" ${more[@]+"${more[@]}"}
    printf 'export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=%q\n' "${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-$shutdown_s}"
    declare -p "${@:2}"
    printf 'main() { %s; }\nmain; exit\n' "$1"
}

# Use the environment of this checkout where no other is active.
use_checkout() {
    local venv=$LIB/../../.venv
    if [ -z "${VIRTUAL_ENV:-}" ] && ! command -v torchrun >/dev/null && [ -x "$venv/bin/torchrun" ]; then
        VIRTUAL_ENV=$(cd "$venv" && pwd -P)
        export VIRTUAL_ENV
    fi
}

# Two pipes whose writing ends only this process holds: the nodes' feeders see them end when it
# closes them, and when it dies. Number 4 is never written: reading it with a time limit is a sleep.
# shellcheck disable=SC2094  # the two ends of a pipe
open_lines() {
    local dir
    dir=$(mktemp -d)
    mkfifo "$dir/stop" "$dir/end" "$dir/sleep"
    exec 4<>"$dir/sleep" 9<>"$dir/stop" 5<"$dir/stop" 6>"$dir/stop"
    exec 9<>"$dir/end" 7<"$dir/end" 8>"$dir/end" 9>&-
    rm -r "$dir"
}

# Be the standard input of a node.
feed() { # TEXT
    printf '%s\n' "$1"
    beat_until_end_of 5
    echo stop
    beat_until_end_of 7
}

beat_until_end_of() { # FILE-DESCRIPTOR
    until has_ended "$1"; do
        echo 2>/dev/null || return
    done
}

has_ended() { # FILE-DESCRIPTOR, within a heartbeat
    local _
    read -r -t $HEARTBEAT_S -u "$1" _
    [ $? -le 128 ]
}

# Run a command in the background with a text as its input; signals of the terminal pass it by.
start() { # NAME TEXT COMMAND...
    (
        trap '' INT TERM HUP
        exec 4<&- 6>&- 8>&-
        exec "${@:3}" < <(feed "$2")
    ) &
    pids+=($!)
    names+=("$1")
}

stop_nodes() { # PATIENCE_S
    exec 6>&-
    deadline=$((SECONDS + $1))
}

end_nodes() {
    exec 6>&- 8>&-
    is_ended=1
    deadline=$((SECONDS + PATIENCE_S))
}

on_signal() { # EXIT-CODE
    if [ "$signalled" -eq 0 ]; then
        signalled=$1
        say "stopping all nodes: up to $shutdown_s s to drain, once more to end at once"
        stop_nodes $((shutdown_s + PATIENCE_S))
    else
        end_nodes
    fi
}

# Wait for all that was started. Exits with the code of the first that failed, or by what signal.
supervise() {
    local index status _
    code=0 signalled=0 deadline='' is_ended=0
    trap 'on_signal 130' INT
    trap 'on_signal 143' TERM HUP
    while [ ${#pids[@]} -gt 0 ]; do
        for index in "${!pids[@]}"; do
            kill -0 "${pids[index]}" 2>/dev/null && continue
            status=0
            wait "${pids[index]}" || status=$?
            unset "pids[index]"
            note_end "${names[index]}" "$status"
        done
        if [ -n "$deadline" ] && [ $SECONDS -gt "$deadline" ]; then
            if [ $is_ended -eq 1 ]; then # ssh or srun hangs
                kill -KILL "${pids[@]}" 2>/dev/null || true
            fi
            end_nodes
        fi
        read -r -t 0.2 -u 4 _ || true
    done
    [ "$code" -eq 0 ] || [ "$signalled" -eq 0 ] || code=$signalled # all drained: 0
    exit "$code"
}

# The first node that fails ends the others.
note_end() { # NAME STATUS
    [ "$2" -ne 0 ] && [ "$code" -eq 0 ] || return 0
    code=$2
    [ "$signalled" -eq 0 ] || return 0
    say "$1 ended with code $2$(hint "$2"): ending the job"
    stop_nodes $PATIENCE_S
}

hint() { # STATUS
    [ "$1" -ne 255 ] || printf ' (ssh could not connect, or the connection broke)'
}

# Start torchrun on all hosts, after the first has told where they can meet.
run_over_ssh() { # REMOTE-COMMAND, which runs a bash that reads its standard input
    local name addresses=() reach=(ssh -T -o BatchMode=yes -o ServerAliveInterval=15)
    shutdown_s=$(shutdown_timeout_s "${command[@]}")
    num_nodes=${#hosts[@]} endpoint=${CHITU_LIKE_ENDPOINT:-}
    for name in "${hosts[@]}"; do
        addresses+=("$(address_of "$name")")
    done
    peers=("${addresses[@]:1:1}" "${addresses[0]}")
    [ -n "$endpoint" ] || endpoint=$(payload meeting_point peers caller_path |
        "${reach[@]}" "${hosts[0]}" "$1" | read_endpoint) ||
        { say "${hosts[0]}, the first node, cannot be used: see above" && exit 1; }
    job=chitu-like-$endpoint-$RANDOM
    open_lines
    for node_index in "${!hosts[@]}"; do
        node_name=${hosts[node_index]}
        start "$node_name" "$(payload run_with_name "${JOB_VARIABLES[@]}")" \
            "${reach[@]}" "$node_name" "$1"
        peers=("${addresses[0]}")
    done
    supervise
}

read_endpoint() {
    local word address port
    while read -r word address port; do
        [ "$word" = meet ] || continue # a login script that talks
        [[ $address != *:* ]] || address=[$address]
        echo "$address:$port"
        return
    done
    return 1
}
