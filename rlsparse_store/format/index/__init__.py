"""The index of a delta: its records, and their bytes (``specs/format.md`` sections 3 and 10)."""
