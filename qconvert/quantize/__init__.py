"""Which tensors are rounded to integers, why the others are not, and the graph that says so."""
