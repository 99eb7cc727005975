"""One chunk: base and tuned words to stored bytes, and back."""
