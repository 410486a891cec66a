"""Pages that open without a server: results, and a generator to draw with."""
