#!/usr/bin/env bash
# Lint, types and every test, from a bare checkout: ./script/test.sh [pytest arguments]
#
# Makes .venv at the first run. Installs no system package: tests that need one (Chromium, ip) are
# skipped with a reason where it is absent; .ci/run installs them first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prepare test
cd "$REPO"
# Some hundred processes import what is here: Python shall compile it once.
unset PYTHONDONTWRITEBYTECODE
timed() {
    local start=$SECONDS
    say "$*"
    "$@" || die "'$*' failed: see above"
    say "took $((SECONDS - start)) s"
}
# Side by side: for the Python that is here, and for the oldest.
check_types() {
    local oldest status=0
    "$VENV_PYTHON" -m mypy --python-version 3.10 --cache-dir .mypy_cache/oldest &
    oldest=$!
    "$VENV_PYTHON" -m mypy || status=$?
    wait "$oldest" && return "$status"
}
timed "$VENV/bin/ruff" check .
timed "$VENV/bin/ruff" format --check .
timed check_types
say "pytest --slow $*"
exec "$VENV_PYTHON" -m pytest --slow "$@"
