"""Settings of every test process."""

import os

# Two workers, each with a thread per core, mostly wait for each other. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
