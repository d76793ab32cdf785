"""Pytest plug-in: `-p orchestrator.testing.pinned_kernels` simulates in the tests' process as the pool does.

It sets environment variables that numpy reads when it is imported, so it must be loaded before other
plug-ins, as those of the command line are.
"""

import os

from sim_workers.arithmetic import pinned_kernels

os.environ.update(pinned_kernels())
