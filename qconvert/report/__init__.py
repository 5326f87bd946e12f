"""One tree of results, and the renderers that only read it."""
