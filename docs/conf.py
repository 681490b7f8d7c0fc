"""How Sphinx builds the site: ``nox -s docs``. Pages are Markdown that reads well on a Git host, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "sglang-fl"
author = "The sglang-fl developers"
copyright = author  # noqa: A001 - Sphinx's name
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "breaks",
    "docstrings",
    "outside",
    "translations",
]
exclude_patterns = ["examples/*/CHANGELOG.md", "examples/*/changelog.d", "requirements.txt", "_static"]
highlight_language = "none"  # a block that names no language is what a command prints
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_rtype = False
