#!/usr/bin/env bash
# Makes .bench-venv: the environment of `make setup` seen through a path file, and the loaders that ours is measured
# against: the extra `bench` of pyproject.toml, each installed alone so that a missing one does not stop the other.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
BENCH=.bench-venv

[ -x "$BENCH/bin/python" ] || "$VENV/bin/python" -m venv "$BENCH"
site=$("$BENCH/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/project.pth"
pwd >> "$site/project.pth"
echo "bench: installing Albumentations and NVIDIA DALI (its CPU pipeline needs no GPU) into $BENCH"
for package in albumentations nvidia-dali-cuda120; do
    "$BENCH/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$package" ||
        echo "bench: $package can't be installed here; it will be named as absent" >&2
done
