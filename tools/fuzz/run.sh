#!/usr/bin/env bash
# Runs the native kernels with address and undefined-behaviour sanitizers: first under the tests of
# the backends, over the vectors and their edited chunks, then under a fuzzer. See README.md beside it.
#
# Needs a C++ compiler, clang with libFuzzer (installed if this runs as root where there is
# apt-get), and in $PYTHON (python3) what the package needs; for the tests also what they need but
# torch and transformers.
#
#     tools/fuzz/run.sh [SECONDS]          FUZZ_SECONDS and 60 are the defaults
#     tools/fuzz/run.sh --reproduce FILE   runs one input of the fuzzer, many times
#
# CORPUS names a folder for the inputs found, and CRASHES one for those that fail; PART=tests and
# PART=fuzz run one half.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
seconds=${1:-${FUZZ_SECONDS:-60}}
part=${PART:-all}
if [ "${1:-}" = --reproduce ]; then
    part=reproduce
    input=${2:?"--reproduce needs a file"}
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
native=rlsparse_store/kernels/native
sources=$root/$native/src
sanitize=(-fsanitize=address,undefined -fno-sanitize-recover=all -g -std=c++17)

fail() {
    echo "tools/fuzz/run.sh: $*" >&2
    exit 1
}

needed=numpy,xxhash,zstandard
[ "$part" = fuzz ] || needed+=,hypothesis,pytest
"$python" -c "import $needed" 2>"$scratch/log" ||
    fail "$python lacks what is needed: $(tail -n 1 "$scratch/log")"
python=$("$python" -c 'import sys; print(sys.executable)')

# Everything below runs this copy of the package, less the compiled modules: other processes may be
# writing them.
mkdir "$scratch/package"
tar -C "$root" --exclude __pycache__ -cf - rlsparse_store | tar -C "$scratch/package" -xf -
rm -f "$scratch/package/$native/"_kernels*.so
export PYTHONPATH=$scratch/package PYTHONDONTWRITEBYTECODE=1
export HYPOTHESIS_STORAGE_DIRECTORY=$scratch/hypothesis

# --- the tests ---------------------------------------------------------------------------------

# Builds the extension into the copy.
build_extension() {
    local include file objects=()
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    for file in "$sources"/*.cpp; do
        objects+=("$scratch/$(basename "$file").o")
        g++ -O1 "${sanitize[@]}" -fPIC -fvisibility=hidden -DPy_LIMITED_API=0x030B0000 -I"$include" \
            -c "$file" -o "${objects[-1]}"
    done
    g++ -O1 "${sanitize[@]}" -shared "${objects[@]}" -o "$scratch/package/$native/_kernels.abi3.so"
}

# Python with the sanitizers' libraries, which have to come first.
sanitized() {
    local library preload=
    for library in libasan.so libubsan.so libstdc++.so; do
        preload+=$(g++ -print-file-name=$library):
    done
    env ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD="$preload" "$@"
}

run_tests() (
    local paths path
    local tests=("$python" -m pytest -q -p no:cacheprovider)
    build_extension
    cd "$root"
    paths=$(cd / && sanitized "$python" -c "
from rlsparse_store.kernels.native import _kernels
assert _kernels.__file__.startswith('$scratch'), _kernels.__file__
print(*_kernels.paths())")
    echo "sanitized tests of the backends, paths $paths"
    # What is left out is no compiled code, or done better by the fuzzer.
    sanitized "${tests[@]}" tests/kernels -k "contexts or blocks or not (numpy or content)"
    for path in $paths; do
        echo "sanitized vectors and edited chunks, $path"
        RLSPARSE_BACKEND=$path sanitized "${tests[@]}" tests/format/test_vectors.py \
            tests/format/test_mutations.py -k "valid_vector and not second_decoder or edited_chunks"
    done
)

# --- the fuzzer --------------------------------------------------------------------------------

has_libfuzzer() {
    echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
        clang++ -fsanitize=fuzzer,address,undefined -x c++ - -o "$scratch/probe" 2>"$scratch/log"
}

need_libfuzzer() {
    has_libfuzzer && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "install clang with libFuzzer (on Debian: clang and libclang-rt-*-dev of its version)"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    apt-get install -y -qq --no-install-recommends clang llvm >/dev/null
    apt-get install -y -qq --no-install-recommends \
        "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" >/dev/null
    has_libfuzzer || fail "the clang installed has no libFuzzer: $(tail -n 1 "$scratch/log")"
}

build_fuzzer() {
    local file files=("$scratch/fuzz_apply.o")
    need_libfuzzer
    for file in "$sources"/*.cpp; do
        # The module and its parts are Python's, and the target has its own scratch memory.
        case $file in */module.cpp | */arguments.cpp | */small.cpp | */scratch.cpp) ;; *) files+=("$file") ;; esac
    done
    # The target is not what is looked at: neither coverage nor checks make it slower.
    clang++ -O2 -g -std=c++17 -I"$sources" -c "$root/tools/fuzz/fuzz_apply.cpp" -o "${files[0]}"
    # Comparisons are not traced: that takes four fifths of the time, and there are no constants to
    # be found in streams of bits.
    clang++ -O2 "${sanitize[@]}" -fsanitize=fuzzer -fno-sanitize-coverage=trace-cmp -pthread \
        "${files[@]}" -o "$scratch/fuzz_apply"
}

# Without this, a quarter of a gigabyte of freed memory is kept.
export ASAN_OPTIONS=quarantine_size_mb=16

run_fuzzer() {
    local corpus=${CORPUS:-$scratch/corpus} crashes=${CRASHES:-$PWD}
    mkdir -p "$corpus" "$crashes"
    crashes=$(cd "$crashes" && pwd)
    build_fuzzer
    # The sanitized extension does not load into a plain Python; the seeds need none.
    rm -f "$scratch/package/$native/"_kernels*.so
    "$python" "$root/tools/fuzz/seeds.py" "$scratch/seeds"
    # To weigh inputs by their entropy takes longer than to run them.
    if ! "$scratch/fuzz_apply" -max_total_time="$seconds" -timeout=20 -max_len=8000 -entropic=0 \
        -artifact_prefix="$crashes/" "$corpus" "$scratch/seeds" 2>"$scratch/log"; then
        grep -E '^[a-z0-9]+: |^ *#[0-9]+ 0x.*rlsparse|ERROR|WRITE|READ|runtime error' \
            "$scratch/log" | head -n 40 >&2
        fail "$(grep -o 'Test unit written.*' "$scratch/log" || tail -n 1 "$scratch/log")"
    fi
    grep -E 'INITED|DONE|^Done' "$scratch/log"
}

reproduce() {
    build_fuzzer
    "$scratch/fuzz_apply" -runs=1000 "$input"
}

case $part in
    all)
        run_tests
        run_fuzzer
        ;;
    tests) run_tests ;;
    fuzz) run_fuzzer ;;
    reproduce) reproduce ;;
    *) fail "PART is all, tests or fuzz" ;;
esac
echo "tools/fuzz/run.sh: nothing found ($part)"
