"""Every test: one thread for torch, since the test runner already uses every core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
