#!/usr/bin/env bash
# Makes an environment with SGLang for machines without a GPU, and this project in it.
#
#     bash tools/engines/make_sglang.sh ENV [SOURCE]
#
# The project is installed from SOURCE; by default this checkout, editable. It takes 3.3 GB.
# SGLang's own requirements are CUDA's, so it gets what it imports on the CPU, an older torch than
# the one that it pins, and stand-ins for its kernels: a functional test, not how to serve.
set -euo pipefail
env=$1 source=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python3 -m venv "$env"
"$env/bin/pip" install -q 'torch==2.13.0+cpu' transformers==5.19.0 \
    aiohttp 'anthropic>=0.20.0' apache-tvm-ffi==0.1.11 blobfile==3.0.0 build \
    compressed-tensors==0.18.0 datasets distro easydict einops fastapi gguf interegular ipython \
    'llguidance>=1.7.6,<2' 'mistral_common>=1.11.5' msgspec ninja numba==0.65.1 nvidia-ml-py \
    openai==2.8.0 openai-harmony==0.0.4 orjson outlines==0.1.11 partial_json_parser pillow \
    prometheus-client psutil pybase64 pydantic 'python-dateutil<3' python-multipart pyzmq \
    requests scipy sentencepiece==0.2.1 setproctitle soundfile==0.13.1 tiktoken \
    'uvicorn>=0.51' uvloop watchfiles xgrammar==0.2.7
"$env/bin/pip" install -q --no-deps sglang==0.5.23 torchvision==0.28.0
packages=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -R tools/engines/standins/* "$packages"
# torchvision looks for its operators when it is imported, after it fails to load them here.
sed -i '1i import torchvision_ops' "$packages/torchvision/extension.py"
if [ -n "$source" ]; then
    "$env/bin/pip" install -q "$source[cloud]"
else
    "$env/bin/pip" install -q -e ".[cloud]"
fi
