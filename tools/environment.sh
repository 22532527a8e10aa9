#!/bin/sh
# Make or renew .venv (or the folder that VENV names): tools/environment.sh run | dev | peers | mutate
#
#   run       what the packages and their command line need (make demo)
#   dev       that, and everything that tests, checks, benchmarks and docs need
#   peers     that, and the libraries that the benchmarks compare ours with
#   mutate    what dev has, and mutmut
#
# Nothing is done when nothing has changed. What it goes by:
#   $VENV/stamp-interpreter    the interpreter and the folder that .venv was made with and in; another one: made anew
#   $VENV/stamp-run, -dev …    checksum of the pinned requirements installed; others: made anew
#   $VENV/stamp-project        checksum of pyproject.toml; another one: the project alone is installed again
# A stamp is written last, so an interrupted run is noticed and begun again. PYTHON=... chooses the interpreter.
set -eu

level=${1:?usage: tools/environment.sh run|dev|peers|mutate}
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=$venv/bin/python

# Two makes at once must not install into one folder; where flock is missing, they are simply not run at once.
if command -v flock >/dev/null 2>&1; then
    mkdir -p "$(dirname "$venv")"
    exec 9>"$venv.lock"
    flock 9
fi

checksum() { cat "$@" | cksum; }
same() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

# An interpreter is what runs, is new enough and can make an environment; that it is on PATH proves nothing (a shim
# of a version manager exists and fails).
identify() {
    "$1" -c '
import sys
if sys.version_info < (3, 11):
    raise SystemExit(1)
import ensurepip, sqlite3, ssl, venv
print(sys.version.replace("\n", " "), sys.base_prefix)
' 2>/dev/null </dev/null
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3.14 python3 python; do
        if identify "$candidate" >/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            echo "PYTHON=$PYTHON is no Python 3.11 or newer with venv, ssl and sqlite3." >&2
            return 1
        fi
    done
    echo "No Python 3.11 or newer with venv, ssl and sqlite3 was found. Install one, or name it: make PYTHON=/path/to/python" >&2
    return 1
}

project=$(checksum pyproject.toml "$0")
interpreter() { printf '%s | %s\n' "$(identify "$1")" "$PWD"; }

fresh=yes
if [ -x "$python" ] && same "$venv/stamp-interpreter" "$(interpreter "$python")"; then
    fresh=no
    # What is pinned has changed: begin anew, so that nothing unpinned is left over.
    for other in run dev peers mutate; do
        if [ -f "$venv/stamp-$other" ] && ! same "$venv/stamp-$other" "$(checksum "requirements/$other.txt")"; then
            fresh=yes
        fi
    done
    if ! ls "$venv"/stamp-run "$venv"/stamp-dev "$venv"/stamp-peers "$venv"/stamp-mutate 2>/dev/null | grep -q .; then
        fresh=yes
    fi
    if [ -n "${PYTHON:-}" ] && [ "$(identify "$PYTHON")" != "$(identify "$python")" ]; then
        fresh=yes
    fi
fi

pip() { "$python" -m pip --disable-pip-version-check --quiet --quiet --no-input "$@"; }

if [ "$fresh" = yes ]; then
    base=$(find_python)
    echo "Making $venv with $("$base" -c 'import platform; print("Python", platform.python_version())') ..."
    rm -rf "$venv"
    "$base" -m venv "$venv"
    interpreter "$python" >"$venv/stamp-interpreter"
fi
# Everything in run.txt is in dev.txt too, and all of that in peers.txt, at the same version.
installed=no
case $level in
    run) enough="run dev peers mutate" ;;
    dev) enough="dev peers mutate" ;;
    *) enough=$level ;;
esac
for other in $enough; do
    if same "$venv/stamp-$other" "$(checksum "requirements/$other.txt")"; then
        installed=yes
    fi
done
if [ "$installed" = no ]; then
    echo "Installing requirements/$level.txt ..."
    # The file is complete. Left to resolve again, pip may take the newest `coverage[toml]` for want of a pin of that name.
    pip install --no-deps --require-hashes -r "requirements/$level.txt"
    pip check
    checksum "requirements/$level.txt" >"$venv/stamp-$level"
fi
if ! same "$venv/stamp-project" "$project"; then
    pip install --no-deps --no-build-isolation --editable .
    printf '%s\n' "$project" >"$venv/stamp-project"
fi
