"""What an engine is worth: measured, with the reason where it was not."""
