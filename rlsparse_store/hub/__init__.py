"""The Hugging Face Hub: repository ids, listings, snapshots, range requests, uploads."""
