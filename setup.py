"""The description on package indexes: the README without what only a clone shows, relative pictures and links."""

import re
from pathlib import Path

from setuptools import setup

ELSEWHERE = r"\((?!https?:)[^)]*\)"  # an address that is not on the web

page = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
page = re.sub(rf"^!\[[^\]]*\]{ELSEWHERE}\n+(\*[^*]+\*\n+)?", "", page, flags=re.MULTILINE)  # with its caption
page = re.sub(rf"!?\[([^\[\]]*)\]{ELSEWHERE}", r"\1", page)

setup(long_description=page, long_description_content_type="text/markdown")
