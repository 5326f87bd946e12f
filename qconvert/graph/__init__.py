"""Graph rewrites: functions from a model to a changed copy and a note of what changed."""
