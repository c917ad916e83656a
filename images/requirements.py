"""Print what an extra of pyproject.toml requires, Stillhouse itself left out: `python requirements.py train`.

An image's dependencies are installed from this list, so that their layer stays as it is while the code changes.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def requirements(project: Mapping[str, Any], extra: str) -> Iterator[str]:
    """Requirements of the project and of one of its extras, and of the extras that this one names."""
    yield from project["dependencies"]
    for requirement in project["optional-dependencies"][extra]:
        if own := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
            yield from requirements(project, own[1])
        else:
            yield requirement


if __name__ == "__main__":
    declared = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(dict.fromkeys(requirements(declared, sys.argv[1]))))
