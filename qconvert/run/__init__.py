"""The jobs, each a sequence of steps; finished steps come from the cache."""
