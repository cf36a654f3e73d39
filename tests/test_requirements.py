"""Requirements: each package has bounds and a reason, and the lock file matches them, with a hash for every file."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK, OLDEST = "requirements/lock.txt", "requirements/oldest.txt"
FILES = ["requirements.txt", "requirements-dev.txt"]
FILES += sorted(
    f"requirements/{path.name}"
    for path in (ROOT / "requirements").iterdir()
    if f"requirements/{path.name}" not in (LOCK, OLDEST)
)


def requirements(name):
    """The requirements in a file, each with its comment."""
    for line in (ROOT / name).read_text().splitlines():
        text, _, comment = line.partition("#")
        if text.strip() and not text.startswith("-r"):
            yield Requirement(text.strip()), comment.strip()


@pytest.mark.parametrize("name", FILES)
def test_each_requirement_has_an_upper_bound_and_a_reason(name):
    for requirement, reason in requirements(name):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators & {"<", "==", "~="}, f"{requirement} has no upper bound"
        assert reason, f"{requirement} has no reason"


def locked_packages():
    """For each package in the lock file: a list of (version, number of hashes)."""
    packages = defaultdict(list)
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / LOCK).read_text()):
        if match := re.match(r"([a-z0-9.-]+)==([^\s;\\]+)", block):
            n_hashes = len(re.findall(r"--hash=sha256:[0-9a-f]{64}", block))
            packages[match[1]].append((Version(match[2]), n_hashes))
    return packages


def test_the_lock_file_matches_the_requirements():
    packages = locked_packages()
    for requirement, _ in requirements("requirements.txt"):
        versions = [version for version, _ in packages[requirement.name.lower()]]
        assert versions and all(version in requirement.specifier for version in versions), requirement
    assert all(n_hashes for versions in packages.values() for _, n_hashes in versions)


def test_the_constraints_are_the_oldest_allowed_versions():
    oldest = {requirement.name: str(requirement.specifier) for requirement, _ in requirements(OLDEST)}
    allowed = {}
    for requirement, _ in requirements("requirements.txt"):
        (bound,) = [item for item in requirement.specifier if item.operator in (">=", "==")]
        allowed[requirement.name] = Version(bound.version)
    assert {name: Version(specifier.removeprefix("==")) for name, specifier in oldest.items()} == allowed


def test_filelock_does_not_follow_links():
    """CVE-2025-68146: up to 3.20.0, a link in place of a lock file leads to the file that is emptied."""
    (requirement,) = [item for item, _ in requirements("requirements.txt") if item.name == "filelock"]
    assert "3.20.0" not in requirement.specifier and "3.20.1" in requirement.specifier


def test_installing_runs_no_code_of_this_project():
    assert not [name for name in ("setup.py", "setup.cfg", "MANIFEST.in") if (ROOT / name).exists()]
    project = (ROOT / "pyproject.toml").read_text()
    assert "[build-system]" not in project and "[project]" not in project
