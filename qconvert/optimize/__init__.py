"""Which parts of a network cost INT8 its answers, and the least that must be float to keep them."""
