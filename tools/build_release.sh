#!/usr/bin/env bash
# Builds what a release of Linux x86-64 holds, and tests it as a user meets it.
#
#     bash tools/build_release.sh ENV OUT
#
# ENV is an environment with the extra `dev`; OUT gets the sdist and the repaired wheel. The wheel is
# built from the sdist, installed into a fresh environment where no compiler can be found, and runs
# tools/test_installed.sh. The extension is also compiled for aarch64, where the cross compiler is
# installed or can be.
set -euo pipefail
env=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A copy, since builds leave files beside the sources, less the compiled modules, which other
# processes may be writing.
mkdir -p "$scratch/source" "$out"
tar --exclude __pycache__ -cf - pyproject.toml README.md LICENSE rlsparse_store |
    tar -C "$scratch/source" -xf -
find "$scratch/source" -name '*.so' -delete
"$env/bin/python" -m build --outdir "$scratch/dist" "$scratch/source" >"$scratch/log" 2>&1 || {
    cat "$scratch/log"
    exit 1
}
PATH=$env/bin:$PATH auditwheel repair -w "$out" "$scratch"/dist/*.whl 2>&1 | tail -n 1
mv "$scratch"/dist/*.tar.gz "$out"
"$env/bin/twine" check --strict "$out"/*

python3 -m venv "$scratch/fresh"
wheel=$(echo "$out"/*-abi3-manylinux*_x86_64.whl)
CC=false CXX=false "$scratch/fresh/bin/pip" install -q -c tools/constraints.txt \
    --only-binary :all: "$wheel[test-core]"
bash tools/test_installed.sh "$scratch/fresh/bin/python" native

compiler=aarch64-linux-gnu-g++
if ! command -v "$compiler" >"$scratch/log" && [ "$(id -u)" = 0 ]; then
    { apt-get update && apt-get install -y --no-install-recommends g++-aarch64-linux-gnu; } \
        >"$scratch/log" 2>&1 || true
fi
if command -v "$compiler" >"$scratch/log"; then
    # The headers are those of this machine's Python: both are 64-bit, and the stable ABI is one.
    mapfile -t arguments < <("$env/bin/python" -c "
import sysconfig, tomllib
with open('pyproject.toml', 'rb') as file:
    extension = tomllib.load(file)['tool']['setuptools']['ext-modules'][0]
print(*extension['extra-compile-args'], *extension['sources'], sep='\n')
print(*(f'-D{name}={value}' for name, value in extension['define-macros']), sep='\n')
print('-I' + sysconfig.get_paths()['include'])")
    "$compiler" -shared -fPIC -Wall -Werror "${arguments[@]}" -o "$scratch/_kernels.abi3.so"
    echo "aarch64: the extension compiles"
else
    echo "aarch64: skipped, its compiler cannot be installed here"
fi
