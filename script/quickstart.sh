#!/usr/bin/env bash
# From a bare checkout to a running service: ./script/quickstart.sh [KEY=VALUE...]
#
# The first run makes .venv and installs; later ones start in seconds and need no network. Every
# KEY=VALUE is a configuration key (models=auto models.ckpt_dir=/path); with none, the service
# runs the chat model that comes with the package. Paths are read as seen from where you stand.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prepare
exec "$VENV/bin/chitu-like" serve "$@"
