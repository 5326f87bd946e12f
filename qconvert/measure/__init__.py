"""Measurements of engines: latency, accuracy, output and layer errors, and memory."""
