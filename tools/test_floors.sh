#!/usr/bin/env bash
# Tests the package with the oldest versions of its dependencies that pyproject.toml accepts.
#
#     bash tools/test_floors.sh ENV
#
# Makes the environment ENV, installs the package and the lower bound of each dependency, and runs
# the slice of tools/test_installed.sh; then the same with torch and transformers, and tests of
# loading. Needs a C++ compiler and the oldest supported Python: old releases of NumPy have no wheels
# for new ones.
set -euo pipefail
env=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The lower bounds of the dependencies and of some extras.
floors() {
    "$env/bin/python" - "$@" <<'END'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
needs = sum((extras[extra] for extra in sys.argv[1:]), project["dependencies"])
for need in needs:
    name, _, versions = need.partition(";")[0].partition(">=")
    if not need.startswith(project["name"]):
        print(f"{name}=={versions.partition(',')[0]}")
END
}

python3 -m venv "$env"
floors plot test-core >"$env/floors.txt"
cat "$env/floors.txt"
"$env/bin/pip" install -q . -r "$env/floors.txt"
bash tools/test_installed.sh "$env/bin/python" native

floors plot test-core transformers trainer >"$env/floors.txt"
"$env/bin/pip" install -q -r "$env/floors.txt"
# Old releases warn about each other. What two tests use came after transformers 5.0: 8-bit floats on
# the CPU, and the size of a tensor-parallel group.
models=tests/integrations/test_transformers.py
bash tools/test_installed.sh "$env/bin/python" native -W ignore::DeprecationWarning \
    "$models" tests/torch/test_live_models.py tests/torch/test_live_names.py \
    --deselect "$models::test_models_of_8_bit_floats" \
    --deselect "$models::test_ranks_hold_and_read_only_their_part"
