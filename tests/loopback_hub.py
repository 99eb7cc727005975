"""The test Hub for scripts outside the tests, which put this folder on their path.

It lies in ``support``, with the other helpers.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
# An import returns what it finds under its name in the end: the module itself.
del sys.modules[__name__]
importlib.import_module(__name__)
