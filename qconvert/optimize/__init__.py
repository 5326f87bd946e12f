"""Optimize a plan for accuracy: range methods, equalization, learned rounding, mixed precision."""
