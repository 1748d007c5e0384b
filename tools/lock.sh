#!/usr/bin/env bash
# Write requirements/*.txt from pyproject.toml: one set of versions for every supported Python.
#   tools/lock.sh [--upgrade]
# Without --upgrade, versions that still fit are kept. The files name no package index, so each machine
# installs from the one it is set up for.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    "${UV:-.venv/bin/uv}" pip compile --universal --python-version 3.10 \
        --generate-hashes --no-annotate \
        --custom-compile-command "make lock" --quiet "$@" >/dev/null
}
compile "$@" --group build --output-file requirements/build.txt
compile "$@" pyproject.toml --all-extras \
    --constraint requirements/build.txt --output-file requirements/run.txt
compile "$@" pyproject.toml --all-extras --group test --group check --group bench \
    --constraint requirements/build.txt --constraint requirements/run.txt \
    --output-file requirements/dev.txt
compile "$@" requirements/docs.in --output-file requirements/docs.txt
compile "$@" --no-deps requirements/clickhouse.in --output-file requirements/clickhouse.txt
compile "$@" --no-deps requirements/redis-servers.in --output-file requirements/redis-servers.txt
compile "$@" --no-deps requirements/browser.in --output-file requirements/browser.txt
