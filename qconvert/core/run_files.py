"""The names of files and folders in a run that several jobs read or write."""

SETTINGS, MODEL, ENGINES, CALIBRATION = "run.toml", "model.onnx", "engines", "calibration"
HEAD_FILE = "head.json"
# In the folder of an engine.
GRAPH_FILE, PLAN_FILE = "model.onnx", "plan.json"
