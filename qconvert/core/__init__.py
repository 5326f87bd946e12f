"""The basis of all other folders: settings, errors, tensors, quantization arithmetic, files."""
