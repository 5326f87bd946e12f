"""Networks of every structure through the whole of qconvert; `make zoo` runs them all."""
