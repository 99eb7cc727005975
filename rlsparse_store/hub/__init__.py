"""The Hugging Face Hub: ids, listings, snapshots, ranges, uploads."""
