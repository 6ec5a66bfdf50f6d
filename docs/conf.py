"""Sphinx builds the site: python -m sphinx -W docs docs/_build"""

import gpuzoo

project = "gpuzoo"
author = "The gpuzoo developers"
copyright = "2026, the gpuzoo developers"
release = gpuzoo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "gpuzoo"
myst_heading_anchors = 3
default_role = "code"  # `name` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
