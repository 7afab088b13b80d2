#!/usr/bin/env bash
# Lint, types and every test, from a bare checkout: ./script/test.sh [pytest arguments]
#
# Makes .venv at the first run. Installs no system package: tests that need one (Chromium, ip) are
# skipped with a reason where it is absent; .ci/run installs them first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prepare test
cd "$REPO"
timed() {
    local start=$SECONDS
    say "$*"
    "$@" || die "'$*' failed: see above"
    say "took $((SECONDS - start)) s"
}
timed "$VENV/bin/ruff" check .
timed "$VENV/bin/ruff" format --check .
timed "$VENV_PYTHON" -m mypy
timed "$VENV_PYTHON" -m mypy --python-version 3.10
say "pytest --slow $*"
exec "$VENV_PYTHON" -m pytest --slow "$@"
