"""The house rules, over the syntax trees: who imports whom, one writer of files, files that stay one thing."""

import ast
import subprocess
from pathlib import Path

import pytest

from pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
MODULES = sorted([ROOT / "run_pipeline.py", *(ROOT / "pipeline").rglob("*.py")])

# What each part of the library may import of ours; stages may import all of the library.
MAY_IMPORT = {
    "settings": set(),
    "recipe": {"settings"},
    "artifacts": set(),
    "competition": set(),
    "memory": set(),
    "views": set(),
    "metrics": set(),
    "pictures": {"pictures"},
    "exploration": set(),
    "recording": set(),
    "inspection": {"inference", "models"},
    "comparison": set(),
    "page": set(),
    "sources": {"competition", "artifacts"},
    "digits": {"memory", "settings"},
    "augmentation": {"settings"},
    "models": {"models", "settings"},
    "inference": {"settings", "views"},
    "optimizers": {"settings"},
    "training": {"augmentation", "inference", "memory", "optimizers", "recording", "settings"},
}


def imported(path):
    """Names below `pipeline` that a file imports: "recipe", "stages.engine", ..."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("pipeline.") for alias in node.names if alias.name.startswith("pipeline")
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            base = node.module.removeprefix("pipeline").lstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                is_module = (ROOT / "pipeline" / whole.replace(".", "/")).with_suffix(".py").exists()
                is_package = (ROOT / "pipeline" / whole.replace(".", "/")).is_dir()
                yield whole if is_module or is_package else base


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    found = {name for name in imported(path) if name}
    inside = path.relative_to(ROOT).as_posix()
    if inside.startswith("pipeline/stages/"):
        stages = {name.removeprefix("stages.") for name in found if name.startswith("stages.")}
        assert not stages & set(STAGES), "stages meet in files"
        assert "run_pipeline" not in path.read_text().replace("python run_pipeline.py", "")
    elif inside == "run_pipeline.py":
        assert {name.split(".")[0] for name in found} <= {
            "artifacts",
            "competition",
            "recipe",
            "settings",
            "sources",
            "stages",
        }
    elif inside != "pipeline/__init__.py":
        part = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        assert {name.split(".")[0] for name in found} <= MAY_IMPORT[part]


WRITERS = {"write_text", "write_bytes", "to_csv", "save", "savez", "tofile", "save_file", "savefig", "dump"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_bytes_reach_files_in_artifacts_alone(path):
    if path.name == "artifacts.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = node.args[1].value if len(node.args) > 1 else "r"
            assert set(mode) <= set("rb"), f"line {node.lineno} opens for writing"
        if isinstance(node.func, ast.Attribute) and node.func.attr in WRITERS:
            # Into memory is fine: torch.save(x, BytesIO()), figure.savefig(BytesIO()), frame.to_csv() as a text.
            targets = [ast.unparse(argument) for argument in node.args]
            assert not any(word in target for target in targets for word in ("path", "folder", "file", "place")), (
                f"line {node.lineno} writes by itself"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_one_thing_and_say_what(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


def test_top_level_is_the_agreed_one():
    agreed = {"README.md", "run_pipeline.py", "pyproject.toml", "pipeline", "data", "docs", "submissions", "tests"}
    agreed |= {"requirements.txt", "requirements-dev.txt", "requirements"}
    agreed |= {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    there = {name.split("/")[0] for name in tracked.splitlines() if not name.startswith(".")}
    assert there == agreed or not tracked  # no git here: a user's copy may hold other files
