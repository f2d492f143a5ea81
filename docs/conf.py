"""The documentation site: `make docs` writes it to build/docs. Warnings are errors, and nothing is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

import fedrobust  # noqa: E402

project = "FedRobust"
author = "The FedRobust authors"
copyright = "2026, the FedRobust authors. Apache-2.0"
release = version = fedrobust.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "docstrings", "families", "offline"]
exclude_patterns = ["extensions"]
nitpicky = False
highlight_language = "text"
maximum_signature_line_length = 88

myst_enable_extensions = ["deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make test-notebooks` runs them; here they are shown with the outputs that they have

default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "FedRobust"
html_show_sourcelink = False
html_copy_source = False
html_css_files = ["site.css"]
html_static_path = ["static"]
