"""Which tensors are quantized, why the others are not, and the graph with Q/DQ nodes."""
