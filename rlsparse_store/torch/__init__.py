"""What works on tensors that are in memory already. Importing this module imports torch."""

from rlsparse_store.torch.patch import patch_
from rlsparse_store.torch.switch import DeltaSwitch

__all__ = ["DeltaSwitch", "patch_"]
