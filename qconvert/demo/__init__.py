"""What `qconvert demo` runs on: a small trained network, and the pictures it was trained for."""
