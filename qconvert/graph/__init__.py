"""Graph rewrites: pure functions from model to model, each saying what it changed."""
