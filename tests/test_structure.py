"""The rules of the architecture, checked over the syntax trees: imports, writers of files, sizes."""

import ast
import functools
import itertools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = sorted([ROOT / "run_pipeline.py", *(ROOT / "pipeline").rglob("*.py")])

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


@functools.cache
def trees():
    """The syntax tree of each module, by its path."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def imported_modules(path):
    """Dotted names below `pipeline` that a file imports: "recipes.config", "stages.train", ..."""
    for node in ast.walk(trees()[path.relative_to(ROOT).as_posix()]):
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


def test_imports_point_one_way():
    faults = []
    for path in MODULES:
        file = path.relative_to(ROOT).as_posix()
        own = tuple(path.relative_to(ROOT / "pipeline").with_suffix("").parts) if file.startswith("pipeline/") else ()
        if file == TABLE or (len(own) < 2 and own != ("errors",)):
            continue
        for name in filter(None, imported_modules(path)):
            imported = tuple(name.split("."))
            is_own = imported[:2] == own[:2] or (imported[0] == own[0] and own[0] != "extras")
            if not is_own and LEVEL[imported[0]] <= LEVEL[own[0]]:
                faults.append(f"{file} imports {name}")
    assert not faults, "\n".join(faults)


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


def test_only_store_writes_files():
    faults = []
    for file, tree in trees().items():
        if Path(file).name in ("store.py", "locks.py", "event_files.py"):  # TensorBoard's writer opens its files itself
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "open":
                mode = node.args[1].value if len(node.args) > 1 else "r"
                if not set(mode) <= set("rb"):
                    faults.append(f"{file}, line {node.lineno}: opens a file for writing")
            if isinstance(node.func, ast.Attribute) and node.func.attr in WRITERS:
                # Writing to memory is fine: torch.save(x, BytesIO()), figure.savefig(BytesIO()), frame.to_csv().
                targets = [ast.unparse(argument) for argument in node.args]
                if any(name in target for target in targets for name in ("path", "folder", "file", "dir")):
                    faults.append(f"{file}, line {node.lineno}: writes a file")
    assert not faults, "\n".join(faults)


def test_files_are_short_and_documented():
    faults = [f"{file} has no docstring" for file, tree in trees().items() if not ast.get_docstring(tree)]
    faults += [
        f"{path} has more than 400 lines"
        for path in MODULES
        if len(path.read_text(encoding="utf-8").splitlines()) > 400
    ]
    assert not faults, "\n".join(faults)


def test_functions_have_at_most_seven_parameters_and_short_results():
    faults = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            if len(names) > 7:
                faults.append(f"{file}, line {node.lineno}: {node.name} has {len(names)} parameters")
            returns = node.returns
            if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) == "tuple":
                items = returns.slice.elts if isinstance(returns.slice, ast.Tuple) else [returns.slice]
                if len(items) > 3:
                    faults.append(f"{file}, line {node.lineno}: {node.name} returns {len(items)} values")
    assert not faults, "\n".join(faults)


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
    for tree in trees().values():
        for node in ast.walk(tree):
            imports = [child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)]
            if isinstance(node, ast.FunctionDef):
                in_functions += len(imports)
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for_types += len(imports)
    assert in_functions <= 25 and for_types <= 15


def test_imports_have_the_form_that_the_hashes_of_code_follow():
    faults = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "pipeline" for alias in node.names):
                faults.append(f"{file}, line {node.lineno}: {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom) and node.level:
                faults.append(f"{file}, line {node.lineno} has a relative import")
    assert not faults, "\n".join(faults)
