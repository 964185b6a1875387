"""The app of whoami.py, imported when the test wants it: see Gate in tests/integration/pending.py."""

import contextlib
import os
import time
from pathlib import Path

gate = Path(os.environ["GATE"])
own = gate / f"held-{os.getpid()}"
with contextlib.suppress(FileNotFoundError):
    (gate / "hold-next").rename(own)
while own.exists() or (gate / "closed").exists():
    time.sleep(0.02)

from whoami import app  # noqa: E402, F401 - after the wait
