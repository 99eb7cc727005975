#!/usr/bin/env bash
# Runs a slice of the tests on the package that is installed in an environment.
#
#     bash tools/test_installed.sh PYTHON native|numpy
#
# The tests are copied to a folder without the package's sources, so that only what was installed
# can be imported. `native` requires that the extension is installed, `numpy` that it is not. The
# environment needs the extra `test-core`; torch is not needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v "$1") kernels=$2
case $python in /*) ;; *) python=$PWD/$python ;; esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -R pyproject.toml tests tools specs "$scratch"
cd "$scratch"

"$python" -P - "$kernels" <<'END'
import sys

from rlsparse_store.kernels.native import instruction_sets

found = "native" if instruction_sets() else "numpy"
if found != sys.argv[1]:
    sys.exit(f"the installed package runs on {found} kernels, and not on {sys.argv[1]}")
END
"$python" -P -m pytest -q -p no:cacheprovider \
    tests/test_released.py tests/format/test_vectors.py tests/kernels tests/codec tests/pipeline
