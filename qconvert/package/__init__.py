"""Packages of a finished run, for programs without qconvert."""
