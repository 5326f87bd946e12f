"""What every other room stands on: settings, errors, tensors, quantization arithmetic, files."""
