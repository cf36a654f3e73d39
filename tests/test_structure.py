"""The rules of the architecture, checked over the syntax trees: imports, writers of files, sizes."""

import ast
import itertools
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([ROOT / "run_pipeline.py", *(ROOT / "pipeline").rglob("*.py")])
by_path = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))

# What the modules of each layer may import from the pipeline; every layer may import the first one.
BASE = {
    "config",
    "contradictions",
    "devices",
    "environment",
    "errors",
    "kaggle_machine",
    "locks",
    "schemas",
    "settings",
    "shapes",
    "source_code",
    "store",
    "publishing",
}
LAYERS = {
    "dataset": {"dataset"},
    "nn": {"dataset", "nn"},
    "analysis": {"dataset", "nn", "analysis"},
    "reports": {"analysis", "reports"},
    "declarations": set(),
    "run_log": set(),
    "workflow": {"declarations", "run_log"},
    "pool": set(),
    "specs": set(),
    "imagenet": {"nn", "specs", "declarations"},
    "features": {"dataset", "nn", "specs", "declarations", "imagenet"},
    "training_task": {"dataset", "nn", "pool", "specs", "imagenet"},
    "predictions": {"dataset", "nn", "features", "declarations"},
    "footprint": {"dataset", "nn", "specs"},
    "networks": {
        "dataset",
        "nn",
        "pool",
        "specs",
        "features",
        "footprint",
        "imagenet",
        "training_task",
        "declarations",
        "workflow",
    },
    "stages": {
        "run_log",
        "dataset",
        "nn",
        "analysis",
        "reports",
        "features",
        "imagenet",
        "networks",
        "predictions",
        "specs",
        "declarations",
        "workflow",
    },
    "cleanup": {"networks", "imagenet", "declarations", "workflow"},
    "summary": {"dataset", "declarations", "workflow"},
    "arguments": {"stages"},
    "cli": {
        "arguments",
        "cleanup",
        "imagenet",
        "footprint",
        "pool",
        "reports",
        "run_log",
        "specs",
        "stages",
        "summary",
        "declarations",
        "workflow",
    },
    "pretrained": {"cli", "dataset", "nn", "analysis", "reports"},
    "run_pipeline": {"cli"},
} | {name: set() for name in BASE}


def imported_modules(path):
    """Dotted names below `pipeline` that a file imports, except for the type checker: "config", "stages.train", ..."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
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


def layer(path):
    if path.name == "run_pipeline.py":
        return "run_pipeline"
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


@by_path
def test_imports_point_one_way(path):
    if path == ROOT / "pipeline/__init__.py":
        return
    imports = {name for name in imported_modules(path) if name}
    allowed = LAYERS[layer(path)] | BASE | ({"stages"} if path.parent.name == "stages" else set())
    assert {name.split(".")[0] for name in imports} <= allowed
    if path.parent.name == "stages" and path.name != "__init__.py":
        assert not any(name.startswith("stages") for name in imports), "stages exchange files, not code"


def test_there_is_no_import_cycle():
    modules = [path for path in MODULES if layer(path) != "run_pipeline"]
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
    stems = sorted({path.stem for path in MODULES if path.stem != "__init__"})
    for first, second in itertools.pairwise(stems):
        common = len(first.removesuffix("e"))
        assert not (second.startswith(first[:common]) and len(second) - common <= 3 and len(first) > 3), (first, second)


# What hashed code imports and does not depend on: settings are compared by value; pictures and pages, the engine, the
# workers and the checkpoints change no figure; a file with ImageNet's weights is identified by its content.
NOT_HASHED = BASE | {
    "dataset.memory",
    "declarations",
    "footprint",
    "imagenet",
    "nn.models.registry",
    "nn.recorder",  # a network that was recorded by other code counts as not recorded
    "pool",
    "run_log",
    "training_task",
    "workflow",
}
RECIPES = {"quick": "small_cnn", "transfer/alexnet": "alexnet", "gan/better": "gan"}


def reached_modules(roots, excluded):
    """The modules that are imported from `roots`, directly or not, also within functions, except through `excluded`."""
    reached, remaining = set(), [*roots]
    while remaining:
        if (name := remaining.pop()) and name not in reached and not name.startswith("reports") | (name in excluded):
            reached.add(name)
            path = ROOT / "pipeline" / name.replace(".", "/")
            remaining += imported_modules(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    return {f"{name}.__init__" if name == "nn.models" else name for name in reached}


def unused_modules(model):
    """What results of a recipe with this model do not depend on."""
    from pipeline import specs

    used = {"small_cnn" if model == "gan" else model}  # `generate` judges the digits of a GAN with `quick`
    others = {name for other, names in specs.MODEL_CODE.items() if other not in used for name in names}
    return NOT_HASHED | (others - {*specs.TRAINING_CODE}).difference(*(specs.MODEL_CODE[name] for name in used))


@pytest.mark.parametrize("model", RECIPES.values())
def test_the_code_of_networks_is_everything_that_it_imports(model):
    from pipeline import specs

    code = {*specs.GAN_CODE} if model == "gan" else {*specs.TRAINING_CODE, *specs.MODEL_CODE[model]}
    root = "nn.gan_training" if model == "gan" else "nn.classifier"
    own = [] if model == "gan" else [f"nn.models.{model}"]
    assert reached_modules([root, *own], unused_modules(model)) <= code


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_code_of_stages_is_everything_that_they_import(recipe):
    from pipeline import config
    from pipeline.stages import ALL_STAGES

    model = RECIPES[recipe]
    kinds = ("all", "gans" if model == "gan" else "classifiers")
    unused = unused_modules(model) | (set() if model == "gan" else {"nn.gan_training", "nn.generators"})
    for stage in ALL_STAGES.values():
        if stage.publishes_itself or not stage.folder or stage.recipes not in kinds:
            continue
        code = {*(stage.code if isinstance(stage.code, tuple) else stage.code(config.load_recipe(recipe)))}
        reached = reached_modules([f"stages.{stage.name}"], unused)
        if "networks" not in reached:
            reached.discard("specs")  # imported for the names of the modules only
        assert reached <= code, f"{stage.name}: {sorted(reached - code)}"


def test_top_level_files():
    expected = {"README.md", "run_pipeline.py", "pyproject.toml", "pipeline", "data", "docs", "submissions", "tests"}
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
