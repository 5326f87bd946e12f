"""Comparisons with other tools; neither the package nor its tests need them."""
