"""The law of the format (``specs/format.md``), pure: bytes and numbers, no files and no threads."""
