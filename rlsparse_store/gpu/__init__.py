"""Everything that runs on a device. Its modules import torch and Triton."""
