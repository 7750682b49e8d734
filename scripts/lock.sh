#!/usr/bin/env bash
# Writes constraints.txt: the version of every package that `make` installs, on x86-64 Linux, for Python 3.10 to 3.13.
# Called by `make lock`. Versions that still fit pyproject.toml stay; --upgrade, --upgrade-package NAME take newer ones.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
UV_VERSION=0.13.8

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$PYTHON" -m venv "$tools/venv"
"$tools/venv/bin/python" -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"
cp constraints.txt "$tools/lock.txt"
"$tools/venv/bin/uv" pip compile -q pyproject.toml --all-extras --universal --python-version 3.10 \
    --no-header --no-annotate --no-emit-index-url --output-file "$tools/lock.txt" "$@"
{
    echo "# Every version that 'make' installs, on x86-64 Linux. pyproject.toml states the ranges that should work."
    echo "# Made by 'make lock': change pyproject.toml and run it, or 'make lock ARGS=--upgrade' for newer versions."
    # The markers that all lines share say nothing here.
    sed -E "s/ and python_full_version < '3\.14'| and platform_machine == 'x86_64'| and sys_platform == 'linux'//g
            s/python_full_version < '3\.14' and |( ; python_full_version < '3\.14'$)//" "$tools/lock.txt"
} > "$tools/constraints.txt"
cp "$tools/constraints.txt" constraints.txt
