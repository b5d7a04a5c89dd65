#!/usr/bin/env bash
# Speed of training, detection and prediction on a GPU, in some five minutes: benchmarks/gpu.sh
#
# OUT is the folder for the results (default: benchmarks/results), PYTHON the interpreter, WHEELS a
# folder of wheels that are missing there; further arguments are those of benchmarks/gpu.py.
# PyTorch must be there; of the other dependencies it takes defusedxml, h5py, jaxtyping, numpy,
# opencv-python-headless, safetensors and simplejpeg. Nothing is installed, no network is used.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for wheel in ${WHEELS:+"$WHEELS"/*.whl}; do
    "$python" -m zipfile -e "$wheel" "$work/packages"
done
export PYTHONPATH="$PWD/src:$work/packages${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'import importlib.metadata as m; m.version("multibox")' 2>/dev/null; then
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    mkdir -p "$work/packages/multibox-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: multibox\nVersion: %s\n' "$version" \
        >"$work/packages/multibox-$version.dist-info/METADATA"
fi
"$python" benchmarks/gpu.py --work "$work/data" --out "${OUT:-benchmarks/results}" --compile "$@"
