"""Tests of the package, in the folders of the package."""

import os

# With pytest-xdist every worker has a core. More threads of OpenMP would wait for each other by
# spinning: training took seven times as long. numpy and torch read this when they are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
