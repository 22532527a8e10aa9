#!/bin/sh
# Pin requirements/*.txt anew, with hashes, for every platform and every Python from 3.11. Needs uv.
#   tools/requirements.sh              renew what pyproject.toml asks for, keep the other versions
#   tools/requirements.sh --upgrade    take the newest versions
set -eu
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make requirements" "$@"
}

compile pyproject.toml requirements/build.in --extra dev --extra docs --output-file requirements/dev.txt "$@"
# The other sets keep the same versions, or they could not share an environment.
compile pyproject.toml requirements/build.in --extra dev --extra docs --extra peers --constraint requirements/dev.txt \
    --output-file requirements/peers.txt "$@"
compile pyproject.toml requirements/build.in --extra dev --extra docs --extra mutate --constraint requirements/dev.txt \
    --output-file requirements/mutate.txt "$@"
compile pyproject.toml requirements/build.in --extra cli --constraint requirements/dev.txt --output-file requirements/run.txt
