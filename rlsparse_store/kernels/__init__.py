"""The hot loops over the words of one chunk, in several implementations that give the same bits."""
