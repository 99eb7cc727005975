"""Where deltas plug into other libraries, each of them imported only when it is used."""
