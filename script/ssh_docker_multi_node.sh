#!/usr/bin/env bash
# torchrun in a running container on each of several nodes:
#
#   ./script/ssh_docker_multi_node.sh CONTAINER PWD HOSTS GPUS CMD...
#   ./script/ssh_docker_multi_node.sh chitu /workspace node1,node2 8 -m chitu_like models=auto models.ckpt_dir=/models/Qwen3-32B infer.tp_size=16
#
# The containers have the same name on each node, see its network (docker run --network host) and
# bring torchrun on their own PATH. See docs/MULTI_NODE.md.
# shellcheck disable=SC2034  # what is set here is read in lib/nodes.sh, by name
set -euo pipefail
# shellcheck source=SCRIPTDIR/lib/nodes.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/nodes.sh"

[ $# -ge 5 ] || usage 'CONTAINER PWD HOSTS GPUS CMD...' \
    'CONTAINER  name of the running container, the same on each node' \
    'PWD        working directory inside it' \
    'HOSTS      comma list of nodes, as ssh knows them; the first gets rank 0' \
    'GPUS       ranks on each node' \
    'CMD        what follows torchrun: -m chitu_like KEY=VALUE..., or a script and its arguments'
[[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] || mistake "'$1' is no name of a container"
[[ $2 == /* ]] || mistake "PWD is a folder inside the container and begins with /, not '$2'"
read_hosts "$3"
check_count GPUS "$4"
ranks_per_node=$4 folder=$2 command=("${@:5}")
FORWARDED+=(CUDA_VISIBLE_DEVICES)
caller_path='' # programs are the container's own
run_over_ssh "docker exec -i $1 bash --login -s"
