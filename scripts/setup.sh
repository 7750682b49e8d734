#!/usr/bin/env bash
# Makes .venv with everything the project needs. Called by `make setup`; safe to call again.
# TORCH_INDEX names a package index to take torch and torchvision from, where it is not the default one.
# EXTRAS names the extras of pyproject.toml to install, separated by commas.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH_INDEX=${TORCH_INDEX:-}
EXTRAS=${EXTRAS-dev}

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null ||
    fail "$PYTHON is not there. Install Python 3.10 to 3.13, or name one: make setup PYTHON=python3.11"
"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$("$PYTHON" --version) is not supported. Name a Python 3.10 to 3.13: make setup PYTHON=python3.11"

# What FFCV's source build needs, and what a Debian python3 leaves out. Prints the Debian packages still missing.
missing_packages() {
    command -v g++ >/dev/null || echo g++
    if command -v pkg-config >/dev/null; then
        pkg-config --exists opencv4 || echo libopencv-dev
        pkg-config --exists libturbojpeg || echo libturbojpeg0-dev
    else
        echo pkg-config libopencv-dev libturbojpeg0-dev
    fi
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$PYTHON" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ||
        echo python3-dev
}

# Installs Debian packages where that is allowed; returns 1 where it is not.
apt_install() {
    command -v apt-get >/dev/null || return 1
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
        sudo=(sudo -n)
    fi
    "${sudo[@]}" apt-get update -qq || return 1
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null || return 1
}

# `setup.sh demo-data` fetches the demo's photographs; without apt, write_datasets.py fetches them itself.
if [ "${1:-}" = demo-data ]; then
    if [ ! -e /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ]; then
        say "installing dataset-fashion-mnist with apt"
        apt_install dataset-fashion-mnist || say "apt is not to be had here; the data will be downloaded instead"
    fi
    exit 0
fi

missing=$(missing_packages | tr '\n' ' ')
if [ -n "${missing// /}" ]; then
    say "installing with apt: $missing"
    # shellcheck disable=SC2086  # one word a package
    apt_install $missing ||
        fail "FFCV's build needs packages that can't be installed without asking you." \
            "Run: sudo apt-get update && sudo apt-get install -y $missing"
    [ -z "$(missing_packages)" ] ||
        fail "still missing after apt-get: $(missing_packages | tr '\n' ' '). Is PYTHON=$PYTHON one that apt knows?"
fi

say "making $VENV with $("$PYTHON" --version) (torch is a large download)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip_install() { "$VENV/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$@"; }
pip_install --upgrade pip setuptools
if [ -n "$TORCH_INDEX" ]; then
    say "taking torch and torchvision from $TORCH_INDEX"
    pip_install --no-deps --index-url "$TORCH_INDEX" torch torchvision
elif ! command -v nvidia-smi >/dev/null; then
    say "no NVIDIA GPU is seen; the same torch without CUDA saves 4.5 GB of disk: make clean, then"
    say "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"
fi
pip_install --build-constraint constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
"$VENV/bin/python" -c 'import ffcv, torch, idmm_fast' || fail "the installation does not import; see the message above"
say "compiling the loader's kernels"
"$VENV/bin/python" -c 'from idmm_fast.loader.compile import compile_kernels; compile_kernels()' ||
    fail "the loader does not run; see the message above"
say "done"
