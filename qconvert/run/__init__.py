"""The jobs, each a few steps in a row; finished steps come from the store."""
