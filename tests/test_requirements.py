"""The packages: each bounded and with its reason; the lock file is of these requirements, every file with its hash."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = "requirements/lock.txt"
FILES = ["requirements.txt", "requirements-dev.txt"]
FILES += sorted(f"requirements/{path.name}" for path in (ROOT / "requirements").iterdir() if path != ROOT / LOCK)


def lines(name):
    """The requirements in a file, each with its comment."""
    for line in (ROOT / name).read_text().splitlines():
        text, _, comment = line.partition("#")
        if text.strip() and not text.startswith("-r"):
            yield Requirement(text.strip()), comment.strip()


@pytest.mark.parametrize("name", FILES)
def test_each_is_bounded_and_has_a_reason(name):
    for requirement, reason in lines(name):
        operators = {one.operator for one in requirement.specifier}
        assert operators & {"<", "==", "~="}, f"{requirement} has no upper bound"
        assert reason, f"{requirement} has no reason"


def locked():
    """Of the lock file: by name, the versions and how many hashes stand with each."""
    found = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / LOCK).read_text()):
        if match := re.match(r"([a-z0-9.-]+)==([^\s;\\]+)", block):
            found.setdefault(match[1], []).append(
                (Version(match[2]), len(re.findall(r"--hash=sha256:[0-9a-f]{64}", block)))
            )
    return found


def test_the_lock_file_is_of_the_requirements():
    found = locked()
    for requirement, _ in lines("requirements.txt"):
        versions = [version for version, _ in found[requirement.name.lower()]]
        assert versions and all(version in requirement.specifier for version in versions), requirement
    assert all(hashes for versions in found.values() for _, hashes in versions)


def test_installing_runs_no_code_of_ours():
    assert not [name for name in ("setup.py", "setup.cfg", "MANIFEST.in") if (ROOT / name).exists()]
    project = (ROOT / "pyproject.toml").read_text()
    assert "[build-system]" not in project and "[project]" not in project
