"""The inputs of `qconvert demo`: a small trained network and its images."""
