"""From a trained image model to the fastest engine that still gives the right answers."""

__version__ = "0.1.0"
