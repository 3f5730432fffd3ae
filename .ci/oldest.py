"""Prints the oldest versions that pyproject.toml accepts, as requirements for pip; of an extra too.

python .ci/oldest.py [EXTRA]
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
wanted = [
    *project["dependencies"],
    *(each for name in sys.argv[1:] for each in project["optional-dependencies"][name]),
]
print(*(re.sub(r">=", "==", each) for each in wanted))
