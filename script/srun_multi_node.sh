#!/usr/bin/env bash
# torchrun on several nodes of a Slurm cluster: ./script/srun_multi_node.sh NODES GPUS CMD...
#
#   ./script/srun_multi_node.sh 2 8 -m chitu_like models=auto models.ckpt_dir=/models/Qwen3-32B infer.tp_size=8 infer.pp_size=2
#   ./script/srun_multi_node.sh 2 8 --partition gpu --time 60 -- test/single_req_test.py models=...
#
# Inside an allocation (salloc, sbatch) it takes nodes of that. Needs this folder, the programs and
# the checkpoint on a file system that all nodes see. See docs/MULTI_NODE.md.
# shellcheck disable=SC2034  # what is set here is read in lib/nodes.sh, by name
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib/nodes.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/nodes.sh"

# Move the options of srun, which begin with a dash and end with "--", from the command to srun.
take_srun_options() {
    local index
    [[ ${command[0]} == -* && ${command[0]} != @(-m|--module) ]] || return 0
    for index in "${!command[@]}"; do
        if [ "${command[index]}" = -- ]; then
            options+=("${command[@]:0:index}")
            command=("${command[@]:index+1}")
            return
        fi
    done
}

# Ask for GPUs, unless the options do or the ranks need none.
ask_for_gpus() {
    [[ " ${options[*]} " == *" --"@(gpu|gres)* || " ${command[*]} " == *" infer.device=cpu "* ]] ||
        options=(--gpus-per-task "$ranks_per_node" "${options[@]}")
}

[ $# -ge 3 ] || usage 'NODES GPUS [SRUN-OPTION... --] CMD...' \
    'NODES  how many' \
    'GPUS   ranks on each node' \
    'CMD    what follows torchrun: -m chitu_like KEY=VALUE..., or a script and its arguments'
check_count NODES "$1"
check_count GPUS "$2"
num_nodes=$1 ranks_per_node=$2 folder=$PWD command=("${@:3}")
options=(--job-name "${USER:-}-chitu-like" --cpus-per-task $((4 * ranks_per_node)))
take_srun_options
[ ${#command[@]} -gt 0 ] || mistake "no command after '--'"
[[ " ${options[*]} " != *' --pty '* ]] || mistake "--pty: standard input carries the job to the nodes"
ask_for_gpus
use_checkout
FORWARDED+=(VIRTUAL_ENV LD_LIBRARY_PATH PYTHONPATH)
caller_path=$PATH endpoint=${CHITU_LIKE_ENDPOINT:-} node_index='' node_name='' job='' peers=()
shutdown_s=$(shutdown_timeout_s "${command[@]}")
open_lines
# --export takes names: what is not among them does not go, and no value stands on a command line.
start srun "$(payload 'place_by_slurm; run_with_name' "${JOB_VARIABLES[@]}")" \
    srun "${options[@]}" --nodes "$num_nodes" --ntasks "$num_nodes" --ntasks-per-node 1 \
    --kill-on-bad-exit=1 --export=HOME,USER,LOGNAME,SHELL,LANG,PATH bash -s
supervise
