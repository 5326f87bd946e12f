"""An engine made ready for other programs: a Triton model repository, or a folder with a script."""
