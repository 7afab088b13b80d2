#!/usr/bin/env bash
# torchrun on several nodes over ssh: ./script/ssh_multi_node.sh HOSTS GPUS CMD...
#
#   ./script/ssh_multi_node.sh node1,node2 8 -m chitu_like models=auto models.ckpt_dir=/models/Qwen3-32B infer.tp_size=8 infer.pp_size=2
#
# HOSTS is a comma list; the first gets rank 0 and so the service's port. Needs ssh keys (it asks
# for no password), and this folder, the programs and the checkpoint at the same paths on each node.
# See docs/MULTI_NODE.md.
# shellcheck disable=SC2034  # what is set here is read in lib/nodes.sh, by name
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib/nodes.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/nodes.sh"

[ $# -ge 3 ] || usage 'HOSTS GPUS CMD...' \
    'HOSTS  comma list of nodes, as ssh knows them; the first gets rank 0' \
    'GPUS   ranks on each node' \
    'CMD    what follows torchrun: -m chitu_like KEY=VALUE..., or a script and its arguments'
read_hosts "$1"
check_count GPUS "$2"
ranks_per_node=$2 folder=$PWD command=("${@:3}")
use_checkout
FORWARDED+=(VIRTUAL_ENV LD_LIBRARY_PATH PYTHONPATH CUDA_VISIBLE_DEVICES)
caller_path=$PATH
run_over_ssh 'bash -s'
