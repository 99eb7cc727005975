#!/usr/bin/env bash
# Runs a slice of the tests on the package that is installed in an environment.
#
#     bash tools/test_installed.sh PYTHON native|numpy [ARGUMENT …]
#
# The arguments are pytest's; without any, the tests are those of the format and of the kernels.
# The tests are copied to a folder without the package's sources, so that only what was installed
# can be imported. `native` requires that the extension is installed, `numpy` that it is not. The
# environment needs the extra `test-core`; torch is not needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v "$1") kernels=$2
shift 2
[ $# -gt 0 ] || set -- tests/test_released.py tests/format/test_vectors.py tests/kernels tests/codec \
    tests/pipeline
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
# Chosen by name, the kernels in NumPy do not warn that there are faster ones.
[ "$kernels" = native ] || export RLSPARSE_BACKEND=$kernels
"$python" -P -m pytest -q -p no:cacheprovider "$@"
