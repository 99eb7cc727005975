#!/usr/bin/env bash
# Tests the package with the oldest versions of its dependencies that pyproject.toml accepts.
#
#     bash tools/test_floors.sh ENV
#
# Makes the environment ENV, installs the package and the lower bound of each dependency, and runs
# the slice of tools/test_installed.sh. Needs a C++ compiler and the oldest supported Python: old
# releases of NumPy have no wheels for new ones. The floors of torch and transformers are not tested
# here, because they take gigabytes.
set -euo pipefail
env=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python3 -m venv "$env"
"$env/bin/python" - >"$env/floors.txt" <<'END'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["plot"], *extras["test-core"]]:
    name, bound, versions = requirement.partition(">=")
    assert bound, f"{requirement}: has no lower bound"
    print(f"{name}=={versions.partition(',')[0]}")
END
cat "$env/floors.txt"
"$env/bin/pip" install -q . -r "$env/floors.txt"
bash tools/test_installed.sh "$env/bin/python" native
