# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: an environment in .venv, torch first, then this checkout.
#
#   PYTHON           the Python to build .venv with (default: python3, then a newer one by name)
#   TORCH_CPU_INDEX  where a machine without NVIDIA GPU looks for torch's small CPU build

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$REPO/.venv
VENV_PYTHON=$VENV/bin/python
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

say() {
    printf '==> %s\n' "$*" >&2
}

is_new_enough() { # PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# Print the Python to use: the one that runs as python3, unless it is too old.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is no program on this machine"
        is_new_enough "$PYTHON" || die "PYTHON=$PYTHON is older than Python 3.10: name a newer one"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    die "no Python >= 3.10 found: install one, or name it with PYTHON=/path/to/python3"
}

# Torch of at least 2.9 is there; told by its metadata, since importing it takes seconds.
has_torch() { # PYTHON
    "$1" - 2>/dev/null <<'PY'
import re
import sys
from importlib.metadata import version

major, minor = re.match(r"(\d+)\.(\d+)", version("torch")).groups()
sys.exit((int(major), int(minor)) < (2, 9))
PY
}

has_nvidia_gpu() {
    compgen -G '/dev/nvidia[0-9]*' >/dev/null || nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

# Make .venv, which sees the packages of the Python beneath it only where its torch is to be used.
make_venv() { # PYTHON
    local options=()
    if has_torch "$1"; then
        options=(--system-site-packages)
        say "using the torch that $1 already has"
    fi
    say "making .venv with $("$1" --version)"
    rm -rf "$VENV"
    create_venv "$1" ${options[@]+"${options[@]}"}
    [ ${#options[@]} -gt 0 ] || return 0
    if ! has_torch "$VENV_PYTHON"; then
        # $1 is in a virtual environment itself, whose packages --system-site-packages passes over.
        local folder='import sysconfig; print(sysconfig.get_path("platlib"))'
        "$1" -c "$folder" >"$("$VENV_PYTHON" -c "$folder")/_beneath.pth"
    fi
    # Python before 3.12 puts an old setuptools into .venv, which hides the one that torch came with.
    "$VENV_PYTHON" -m pip uninstall --quiet --yes setuptools 2>/dev/null || return 0
}

create_venv() { # PYTHON [OPTION]
    if "$1" -c 'import ensurepip' 2>/dev/null; then
        "$1" -m venv "${@:2}" "$VENV" || die "'$1 -m venv' failed: see above"
        return
    fi
    # Debian splits ensurepip off into python3-venv; the pip of the Python beneath can do its work.
    { "$1" -m venv --without-pip "${@:2}" "$VENV" 2>/dev/null &&
        "$1" -m pip --python "$VENV_PYTHON" install --quiet --ignore-installed pip; } ||
        die "$1 can make no virtual environment: install its venv module (Debian: apt-get install python3-venv)"
}

# What pip says matters only when it fails: its warnings about a machine's other indexes do not.
pip_install() {
    "$VENV_PYTHON" -m pip install --disable-pip-version-check --quiet "$@" 2>"$VENV/pip.log" ||
        { cat "$VENV/pip.log" >&2 && return 1; }
}

install_torch() {
    has_torch "$VENV_PYTHON" && return
    if has_nvidia_gpu; then
        say "installing torch (some gigabytes)"
        pip_install torch || die "pip could not install torch: see above"
        return
    fi
    say "installing torch for the CPU (some 200 MB)"
    # Where the index cannot be reached pip warns and takes what its other sources have; few retries
    # and a short time-out, or that would cost minutes.
    pip_install --retries 0 --timeout 10 --extra-index-url "$TORCH_CPU_INDEX" torch==2.13.0 ||
        die "pip could not install torch 2.13.0 for $("$VENV_PYTHON" --version): see above; another Python can be named with PYTHON=..."
}

# What an installation follows from, in one word: the requirements, the sources that are compiled,
# and the folder, because an editable installation and its commands name it.
fingerprint() {
    {
        echo "$REPO"
        cd "$REPO" && find setup.py requirements-build.txt script/lib.sh csrc -type f | sort |
            xargs cat
    } | cksum | tr ' ' -
}

is_installed() { # [EXTRA]
    [ "$(cat "$VENV/.installed-${1:-core}" 2>/dev/null)" = "$(fingerprint)" ]
}

# Install this checkout, editable, unless just that has been done before.
install_checkout() { # [EXTRA]
    local extra=${1:-}
    is_installed "$@" && return
    install_torch
    say "installing chitu_like${extra:+ with what its tests need}"
    { pip_install -r "$REPO/requirements-build.txt" &&
        pip_install --use-pep517 --no-build-isolation --editable "$REPO${extra:+[$extra]}"; } ||
        die "pip could not install chitu_like: see above"
    # With an extra the core is there too: the other script has nothing left to do.
    fingerprint | tee "$VENV/.installed-${1:-core}" >"$VENV/.installed-core"
}

# Everything, in order; a second run finds it all done and needs no network.
prepare() { # [EXTRA]
    local python
    if [ ! -w "$REPO" ]; then
        is_installed "$@" || die "cannot write to $REPO, where .venv belongs: clone it to a folder of yours"
        return
    fi
    if command -v flock >/dev/null; then # two scripts at once: the second waits for the first
        exec 9>"$REPO/.venv.lock"
        flock 9
    fi
    if ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit 1
        make_venv "$python"
    fi
    install_checkout "$@"
    exec 9>&-
}
