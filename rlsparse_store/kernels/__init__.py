"""Inner loops over the words of one chunk. All implementations give the same bits."""
