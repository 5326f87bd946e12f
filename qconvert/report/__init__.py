"""One tree of results, and renderers that only read it."""
