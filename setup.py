"""The README as a package index shows it: without pictures, and without links that lead into the repository."""

import re
from pathlib import Path

from setuptools import setup

text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
text = re.sub(r"!\[[^]]*]\((?!https:)[^)]*\)\n*", "", text)
text = re.sub(r"\[([^]]*)]\((?!https:)[^)]*\)", r"\1", text)
setup(long_description=text, long_description_content_type="text/markdown")
