"""Files as this package reads and writes them: strict, bounds-checked and durable."""
