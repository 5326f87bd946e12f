"""Run qconvert on networks of many structures; `make zoo` runs them all."""
