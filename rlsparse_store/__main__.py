"""``python -m rlsparse_store`` is ``rlsparse``."""

from rlsparse_store.cli import main

main()
