"""Statistics of a model's tensors over images, and the ranges that follow from them."""
