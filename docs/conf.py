"""Sphinx configuration; ``make docs`` builds the pages and takes every warning for an error."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import sticky_session  # noqa: E402  (found by the path above)

project = "sticky-session"
author = "sticky-session contributors"
copyright = author
version = release = sticky_session.__version__

extensions = ["myst_parser", "proxy_config", "pywsgi_differences", "sticky_options"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"sticky-session {version}"
html_copy_source = False
# Of flags they would make dashes.
smartquotes = False
