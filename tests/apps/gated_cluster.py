"""The app of cluster.py, imported when the test wants it: see Gate in tests/integration/pending.py."""

import gated  # noqa: F401 - waits
from cluster import app  # noqa: F401
