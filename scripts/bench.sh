#!/usr/bin/env bash
# Makes .bench-venv: the environment of `make setup` seen through a path file, and the peers that the loader is measured against.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
BENCH=.bench-venv

[ -x "$BENCH/bin/python" ] || "$VENV/bin/python" -m venv "$BENCH"
site=$("$BENCH/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/project.pth"
pwd >> "$site/project.pth"
echo "bench: installing Albumentations and NVIDIA DALI (its CPU pipeline needs no GPU) into $BENCH"
for peer in albumentations==2.0.8 nvidia-dali-cuda120==2.4.0; do
    "$BENCH/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$peer" ||
        echo "bench: $peer can't be installed here; it will be named as absent" >&2
done
