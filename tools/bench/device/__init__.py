"""The parts of ``tools/bench/gpu.py``: all but ``install`` import torch, Triton and the package."""
