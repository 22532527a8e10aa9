#!/bin/sh
# Say where Python 3.12 (or another version) is: tools/interpreter.sh 3.12. Fails where it is not installed.
# What counts is what runs: a shim of a version manager can exist and fail, and what it keeps may not be on PATH.
set -eu

version=${1:?usage: tools/interpreter.sh 3.12}
runs() {
    "$1" -c 'import sys; raise SystemExit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$version" >/dev/null 2>&1 </dev/null
}
for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python python3 python; do
    if runs "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
done
echo "Python $version is not installed." >&2
exit 1
