"""What the tensors of a model hold, measured once, and the ranges that follow from it."""
