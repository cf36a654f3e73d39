"""The rules of the architecture, checked over the syntax trees: imports, writers of files, sizes."""

import ast
import itertools
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([ROOT / "run_pipeline.py", *(ROOT / "pipeline").rglob("*.py")])
by_path = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))

# Each layer may import those below it. Extras do not import each other, and only the table lists them.
LAYERS = [
    {"cli"},
    {"stages", "extras"},
    {"training"},
    {"nn", "metrics"},
    {"dataset"},
    {"workflow"},
    {"recipes", "reports", "kaggle", "machine"},
    {"errors", "shapes"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TABLE = "pipeline/stages/__init__.py"


def imported_modules(path, for_types_too=True):
    """Dotted names below `pipeline` that a file imports: "recipes.config", "stages.train", ..."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    }
    for node in ast.walk(tree):
        if id(node) in for_types and not for_types_too:
            continue
        if isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("pipeline.") for alias in node.names if alias.name.startswith("pipeline")
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            base = node.module.removeprefix("pipeline").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                location = ROOT / "pipeline" / name.replace(".", "/")
                yield name if location.is_dir() or location.with_suffix(".py").exists() else base


@by_path
def test_imports_point_one_way(path):
    file = path.relative_to(ROOT).as_posix()
    own = tuple(path.relative_to(ROOT / "pipeline").with_suffix("").parts) if file.startswith("pipeline/") else ()
    if len(own) < 2 and own != ("errors",):
        return
    for name in filter(None, imported_modules(path)):
        imported = tuple(name.split("."))
        if imported[0] == own[0] and own[0] != "extras":
            continue
        if imported[:2] == own[:2] or file == TABLE:
            continue
        assert LEVEL[imported[0]] > LEVEL[own[0]], f"{own} imports {name}"


def test_the_package_has_few_parts():
    parts = {path.name for path in (ROOT / "pipeline").iterdir()} - {"__init__.py", "__pycache__"}
    assert {name.removesuffix(".py") for name in parts} == LEVEL.keys() and len(parts) <= 14


def test_there_is_no_import_cycle():
    modules = [path for path in MODULES if path.name != "run_pipeline.py"]
    names = {".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts): path for path in modules}
    names = {name.removesuffix(".__init__"): path for name, path in names.items() if name != "__init__"}
    graph = {name: {module for module in imported_modules(path) if module != name} for name, path in names.items()}
    while graph:
        leaves = [name for name, imports in graph.items() if not imports & graph.keys()]
        assert leaves, f"import cycle among {sorted(graph)}"
        for name in leaves:
            del graph[name]


WRITERS = {"write_text", "write_bytes", "to_csv", "save", "savez", "tofile", "save_file", "savefig", "dump"}


@by_path
def test_only_store_writes_files(path):
    if path.name in ("store.py", "locks.py", "event_files.py"):  # TensorBoard's writer opens its files itself
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            mode = node.args[1].value if len(node.args) > 1 else "r"
            assert set(mode) <= set("rb"), f"line {node.lineno} opens a file for writing"
        if isinstance(node.func, ast.Attribute) and node.func.attr in WRITERS:
            # Writing to memory is fine: torch.save(x, BytesIO()), figure.savefig(BytesIO()), frame.to_csv().
            targets = [ast.unparse(argument) for argument in node.args]
            assert not any(name in target for target in targets for name in ("path", "folder", "file", "dir")), (
                f"line {node.lineno} writes a file"
            )


@by_path
def test_files_are_short_and_documented(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@by_path
def test_functions_have_at_most_seven_parameters_and_short_results(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        assert len(names) <= 7, f"{node.name} (line {node.lineno}) has {len(names)} parameters"
        returns = node.returns
        if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) == "tuple":
            items = returns.slice.elts if isinstance(returns.slice, ast.Tuple) else [returns.slice]
            assert len(items) <= 3, f"{node.name} (line {node.lineno}) returns {len(items)} values"


def test_no_two_modules_differ_only_in_their_ending():
    paths = sorted({path.with_suffix("") for path in MODULES if path.stem != "__init__"})
    for first, second in itertools.pairwise(paths):
        common = len(first.stem.removesuffix("e"))
        is_similar = second.stem.startswith(first.stem[:common]) and len(second.stem) - common <= 3
        assert first.parent != second.parent or not is_similar or len(first.stem) <= 3, (first, second)


def test_top_level_files():
    expected = {
        "README.md",
        "run_pipeline.py",
        "pyproject.toml",
        "pipeline",
        "data",
        "docs",
        "submissions",
        "tests",
        "examples",
    }
    expected |= {
        "requirements.txt",
        "requirements-dev.txt",
        "requirements",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    present = {name.split("/")[0] for name in tracked.splitlines() if not name.startswith(".")}
    assert present == expected or not tracked  # without git, a user's copy may contain other files


def test_modules_import_at_the_top():
    """Only what --status loads imports large libraries within functions."""
    in_functions, for_types = 0, 0
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            imports = [child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)]
            if isinstance(node, ast.FunctionDef):
                in_functions += len(imports)
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for_types += len(imports)
    assert in_functions <= 25 and for_types <= 15


@by_path
def test_imports_have_the_form_that_the_hashes_of_code_follow(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "pipeline" for alias in node.names), f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} has a relative import"
