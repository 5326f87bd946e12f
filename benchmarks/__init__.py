"""Measurements against other tools; nothing in the package or its tests needs them."""
