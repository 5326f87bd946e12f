"""Training of the Q/DQ graph that ships, as a torch module; needs the extra `[torch]`."""
