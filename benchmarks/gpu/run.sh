#!/usr/bin/env bash
# Everything that a GPU is to be asked, in order of worth: benchmarks/gpu/run.sh OUT [--dry] [--minutes 12] [--only mlp].
# For a machine without a network: wheels that it lacks are taken from .whl/ at the root of the checkout. See docs/gpu.md.
set -euo pipefail
out=$(realpath -m "${1:?where the results go: benchmarks/gpu/run.sh OUT}")
shift
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --target "$site" .whl/*.whl
    export PYTHONPATH=$PWD:$site
fi
python3 -m benchmarks.gpu.session "$out" "$@"
