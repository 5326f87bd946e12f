"""Packages of a finished run, for programs that know nothing of qconvert."""
