# Sourced by scripts/demo and scripts/test: makes the Python environment once and finds it again later.
#
#   PYTHON               the interpreter to make it with (default: the first of python3, python3.11, … that is 3.11 or newer)
#   FEWSTEP_VENV         its folder (default: .venv in the repository)
#   FEWSTEP_TORCH_INDEX  package index to take torch and torchvision from (default: pip's own). On Linux pip's own
#                        brings several GB of CUDA libraries; https://download.pytorch.org/whl/cpu brings none.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FEWSTEP_VENV:-$ROOT/.venv}"

say() { printf '\n==> %s\n' "$*"; }

fail() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

# Print the first interpreter that is new enough and can make environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
        [ "$candidate" = "${PYTHON:-}" ] && return 1
    done
    return 1
}

# Print a fingerprint of everything that decides what is installed.
fingerprint() {
    "$VENV/bin/python" - "$ROOT" "$1" "${FEWSTEP_TORCH_INDEX:-}" <<'PYTHON_CODE'
import hashlib, pathlib, sys
facts = [sys.version, *sys.argv[1:], pathlib.Path(sys.argv[1], "pyproject.toml").read_text()]
print(hashlib.sha256("\0".join(facts).encode()).hexdigest())
PYTHON_CODE
}

is_current() {
    [ -x "$VENV/bin/python" ] && [ -f "$VENV/.fewstep-$1" ] && [ "$(cat "$VENV/.fewstep-$1")" = "$(fingerprint "$1")" ]
}

# prepare_environment base|dev: have fewstep, with its extra "dev" if so named, installed and its environment active.
prepare_environment() {
    local extra="$1" python quiet=""
    if is_current "$extra" || is_current dev; then
        say "Using the environment in $VENV"
    else
        if [ ! -x "$VENV/bin/python" ]; then
            python="$(find_python)" || fail "no Python 3.11 or newer with the modules venv and ensurepip was found" \
                "${PYTHON:+(PYTHON=$PYTHON)}: install one (on Debian and Ubuntu: apt install python3 python3-venv)," \
                "or name it: PYTHON=/path/to/python3.12 $0"
            say "Making an environment in $VENV with $("$python" --version)"
            "$python" -m venv "$VENV" || fail "could not make an environment in $VENV: set FEWSTEP_VENV to another folder"
        fi
        [ -t 1 ] || quiet="--quiet"
        if [ -n "${FEWSTEP_TORCH_INDEX:-}" ]; then
            say "Installing torch from $FEWSTEP_TORCH_INDEX"
            "$VENV/bin/python" -m pip install $quiet torch torchvision --index-url "$FEWSTEP_TORCH_INDEX" ||
                fail "pip could not install torch from $FEWSTEP_TORCH_INDEX"
        fi
        say "Installing fewstep and what it needs (torch is the largest part; minutes at the first run)"
        if [ "$extra" = base ]; then
            "$VENV/bin/python" -m pip install $quiet -e "$ROOT" || fail "pip could not install $ROOT"
        else
            "$VENV/bin/python" -m pip install $quiet -e "$ROOT[$extra]" || fail "pip could not install $ROOT[$extra]"
        fi
        fingerprint "$extra" > "$VENV/.fewstep-$extra"
    fi
    PATH="$VENV/bin:$PATH"
    export PATH
    cd "$ROOT" || exit 1
}
