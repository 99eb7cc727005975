"""Object storage: URLs of buckets, conditional writes, range reads, a cache on disk."""
