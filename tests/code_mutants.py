"""Small faults in the code that matters most, and the test files that must notice each of them.

    python -m tests.code_mutants                # all of them, in about 15 minutes on 2 cores
    python -m tests.code_mutants --tenth 3      # every tenth, from the fourth on
    python -m tests.code_mutants publish splits # those whose description contains a text

A mutant replaces an expression, which is looked up in the syntax tree of a function, in a copy of the checkout. The
test files of a mutant run there until the first test fails. The exit code is 1 if no test fails.

Edits that change nothing that can be observed are not in the list: the last chunk of `store.write` written twice
(a file is renamed only when it is complete), `>=` for `>` in `MAX_WAIT` of submit (a moment of 10 minutes), and no
`lock.release()` in `locks.lock_workspace` (the lock is released when its object is deleted, right afterwards).
"""

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("pipeline", "tests", "docs", "requirements", "run_pipeline.py", "pyproject.toml", "README.md")
TIMEOUT = 300  # seconds; a test that a mutant keeps from ending has noticed it


class Mutant(NamedTuple):
    module: str  # "workflow.store": pipeline/workflow/store.py
    function: str  # "write", or "Submission.load"
    expression: str  # occurs once in the function
    replacement: str
    tests: str  # names of test files without "test_" and ".py", separated by spaces

    def __str__(self) -> str:
        return f"{self.module}.{self.function}: {self.expression} -> {self.replacement}"


# By module: the test files that must notice a fault, unless an entry names others; and the mutants as (function,
# expression, replacement).
MUTANTS_BY_MODULE: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "workflow.store": ("store", [
        ("write", "os.fsync(file.fileno())", "None"),
        ("write", "temporary.unlink(missing_ok=True)", "None", "store failed_writes"),
        ("write", "os.path.lexists(name)", "False"),
        ("_list_of", "is_file(file)", "os.path.isfile(file)", "publishing"),
        ("_add_to_list", "not is_file(path)", "path.is_dir()"),
        ("_write_all", "file.write(view)", "len(view) + 0 * file.write(view)"),
        ("_filename_in_errors", "str(path)", "error.filename", "store failed_writes"),
        ("write_array_chunks", "n_rows != shape[0]", "False"),
        ("write_array_chunks", "chunk.dtype != dtype", "False"),
        ("read_json", "os.path.getsize(path) > max_bytes", "False"),
        ("read_json", "os.path.isfile(path)", "True"),
        ("read_manifest", "manifest.pop(SEAL, None) != _seal(manifest)", "False and manifest.pop(SEAL, None)"),
        ("read_intact_manifest", "changed_outputs(folder, manifest)", "False", "store engine"),
        ("write_manifest", "sync_folder(folder)", "None"),
        ("changed_outputs", "sha256(path) != digest", "False"),
        ("changed_outputs", "rehash", "False", "silent_damage"),
        ("changed_outputs", "rehash", "True", "store"),
        ("changed_outputs", "[*_fingerprint(path), digest]", "[*_fingerprint(path), *files.get(name, [''])[-1:]]"),
        ("_fingerprint", "[stat.st_size, stat.st_mtime_ns, stat.st_ino]", "[stat.st_size, stat.st_mtime_ns, 0]"),
        ("_fingerprint", "[stat.st_size, stat.st_mtime_ns, stat.st_ino]", "[0, stat.st_mtime_ns, stat.st_ino]"),
    ]),
    "workflow.publishing": ("store", [
        ("publish", "store.sync_folder(folder.parent)", "None"),
        ("publish", "store.sync_folder(staging)", "None"),
        ("restore", "is_staged(previous)", "True", "foreign_files store"),
        ("restore", "{store.STAGED}", "{*()}", "foreign_files"),
        ("_beside", "is_staged(path) or _is_free(path)", "True", "foreign_files"),
        ("published_dir", "not folder.exists()", "True"),
    ]),
    "workflow.locks": ("file_systems", [
        ("acquire_lock", "not store.is_file(path)", "False"),
        ("lock_workspace", "store.is_file(path.parent / name)", "True"),
    ]),
    "cli.cleanup": ("cleanup", [
        ("_content", "_real(path) == path", "True"),
        ("_content", "not path.is_symlink()", "True"),
        ("_files_called", "(path / link).is_symlink()", "False"),
        ("_referenced_networks", "store.resolve(path)", "None"),
    ]),
    "workflow.engine": ("engine freshness", [
        ("Workflow._state", "manifest.get('format') != FORMAT", "False"),
        ("Workflow.stale_reason", "load_function(stage.stale_reason)(self, manifest)", "''", "download"),
        ("Workflow._state", "store.changed_outputs(folder, manifest, rehash)", "{}"),
        ("Workflow.ensure_fresh", "self.state(stage, rehash=True)", "self.state(stage)", "silent_damage"),
        ("Workflow.run_stage", "self.force or not store.read_intact_manifest(staging, context.key)",
         "not store.read_intact_manifest(staging, context.key)", "engine"),
        ("Workflow.run_stage", "context.check_inputs()", "None", "engine"),
        ("Workflow.require_intact", "store.sha256(file.path) != file.sha256", "False", "engine"),
        ("_first_difference", "recorded.keys() | current.keys()", "current.keys()"),
    ]),
    "training.ensure": ("silent_damage", [
        ("_is_reusable", "store.changed_outputs(network.folder, manifest)", "False"),
        ("_publish", "context.check_inputs()", "None", "ensure"),
        ("_publish_if_complete", "store.changed_outputs(staging, manifest)", "False"),
    ]),
    "training.features": ("features", [
        ("_extract", "context.check_inputs()", "None"),
        ("_extract", "store.sha256(path) != hashes.get(path.name)", "False"),
    ]),
    "stages.prepare": ("prepare", [("_read_tables", "context.check_inputs()", "None")]),
    "training.pool": ("pool", [
        ("worker", "_end_with_parent(parent)", "None"),
        ("_end_with_parent", "_training.locked()", "False"),
        ("_end_with_parent", "os._exit(1)", "None"),
    ]),
    "stages.download": ("silent_damage", [
        ("_register", "store.changed_outputs(raw, manifest).keys() - changed.keys()", "set()"),
        ("_choose_source", "store.changed_outputs(raw, earlier)", "{}"),
    ]),
    "dataset.splits": ("splits", [
        ("split_rows", "n_validation < n_classes", "n_validation <= n_classes"),
        ("split_rows", "len(labels) - n_validation < n_classes", "False"),
        ("split_rows", "np.sort(part)", "part"),
        ("split_rows", "settings.seed", "0"),
        ("assign_folds", "settings.seed", "0"),
        ("assign_folds", "0 < count < settings.folds", "0 < count + 1 < settings.folds"),
    ]),
    "dataset.tables": ("tables", [
        ("_parse", "hundreds > 2", "hundreds > 3"),
        ("_parse", "values < low", "False"),
        ("_parse", "(last & second & third & fourth).any()", "False"),
        ("_parse_in_threads", "len(pending) > 2 * N_THREADS", "False"),
        ("read_chunks", "values[:, 0].max() > 9", "False"),
        ("read_chunks", "n_rows > max_rows", "False"),
        ("read_submission_table", "int(match[1]) != row", "False"),
        ("read_submission_table", "len(text) > max_bytes", "False"),
        ("_split_rows", "len(rest) > MAX_ROW_BYTES", "False"),
        ("encode_submission", "enumerate(labels.tolist(), 1)", "enumerate(labels.tolist())"),
    ]),
    "dataset.transforms": ("transforms", [
        ("_make_transform", "np.rint(values, out=values)", "None"),
        ("_make_transform", "np.clip(values, 0, 255, out=values)", "None"),
        ("transform_with_scipy", "(down, right)", "(right, down)"),
        ("transform_with_scipy", "1 / amount", "amount / 1"),
        ("_overlap", "size - max(offset, 0)", "size - max(offset, 1)"),
        ("_make_product", "np.allclose(matrix, matrix[::-1, ::-1], atol=1e-6)", "True"),
    ]),
    "stages.augment": ("augment", [
        ("run", "np.tile(labels, len(variants))", "np.repeat(labels, len(variants))"),
    ]),
    "nn.trainer": ("trainer", [
        ("Trainer.train_epoch", "self.step + 0.5", "self.step"),
        ("Trainer.train_epoch", "self.step >= (1 - train.swa_fraction) * self.n_steps",
         "self.step > (1 - train.swa_fraction) * self.n_steps", "trainer training_methods averaging"),
        ("Trainer.train_epoch", "seed_everything(train.seed, self.epoch)", "seed_everything(train.seed, 1)"),
        ("Trainer.train_epoch", "total_loss / n_rows", "total_loss / len(batch_sizes)"),
        ("Trainer.validate_epoch", "copy.deepcopy(network.state_dict())", "network.state_dict()"),
        ("Trainer.validate_epoch", "math.isfinite(value)", "True", "trainer training_methods precision"),
        ("Trainer.result", "self.averaged.network if self.averaged else self.network",
         "self.network", "trainer training_methods"),
        ("Trainer.load_state_dict", "self.row_losses.copy_(checkpoint['row_losses'])", "None"),
        ("Trainer._backward", "losses.sum() / len(rows)", "losses.mean()"),
        ("learning_rate_factor", "progress < train.warmup", "progress <= train.warmup / 2"),
    ]),
    "nn.batches": ("trainer", [
        ("selected_row", "row['validation_loss']", "(row['validation_loss'], -row['epoch'])"),
        ("split_into_batches", "rest == 1", "False"),
        ("select_rows", "round(n_rows * HARD_SHARE)", "n_rows", "training_methods"),
    ]),
    "training.held_out": ("evaluate", [
        ("TrainingRows.unseen_by", "self.folds == metadata['fold']", "self.folds != metadata['fold']"),
        ("predict_held_out", "np.maximum(counts, 1)", "np.maximum(counts, len(metadata))"),
    ]),
    "metrics.classification": ("classification", [
        ("calibration", "np.digitize(confidence, edges[1:-1], right=True)", "np.digitize(confidence, edges[1:-1])"),
        ("most_confident_errors", "predictions != labels", "predictions == predictions"),
        ("least_likely_labels", "probabilities[np.arange(len(labels)), labels]",
         "probabilities.max(1)", "classification evaluate"),
    ]),
    "stages.evaluate": ("blend", [
        ("_class_metrics", "sklearn.metrics.precision_recall_fscore_support(labels, predictions, labels=range(10), "
         "zero_division=math.nan)", "sklearn.metrics.precision_recall_fscore_support(predictions, labels, "
         "labels=range(10), zero_division=math.nan)", "evaluate"),
    ]),
    "stages.predict": ("pretrained predict", [
        ("run", "refuse_pretrained(network)", "None"),
    ]),
    "extras.blend.stage": ("blend", [
        ("run", "np.mean([_read(each, 'predict/probabilities.npy', None) for each in context.members], axis=0)",
         "_read(context, 'predict/probabilities.npy', None)"),
        ("_evaluate", "reduce(np.intersect1d, held_out)", "held_out[0]"),
        ("_evaluate", "np.mean(probabilities, axis=0)", "probabilities[0]"),
        ("_evaluate", "np.searchsorted(own, rows)", "np.arange(len(rows))"),
        ("_evaluate", "any(own['chosen_on_these_rows'] for own in metrics)",
         "all(own['chosen_on_these_rows'] for own in metrics)"),
    ]),
    "training.predictions": ("predict", [
        ("predict_test_rows", "np.mean(probabilities, axis=0)", "probabilities[0]"),
    ]),
    "dataset.submission": ("submit", [
        ("write_submission", "np.array_equal(tables.read_submission_table(TableFile(path), n_rows), labels)",
         "True", "predict"),
        ("write_submission", "n_rows == competition.TEST_ROWS", "True", "predict submit"),
        ("write_submission", "previous.get('sent', [])", "[]"),
        ("Submission.load", "receipt.get('source') not in competition.SOURCES", "False"),
        ("Submission.load", "digest != receipt['sha256'][FILE]", "False"),
        ("Submission.load", "n_rows != competition.TEST_ROWS", "False"),
        ("Submission.weights", "hashes if isinstance(hashes, list) else [hashes]", "[hashes]", "pretrained submit"),
    ]),
    "stages.submit": ("submit", [
        ("submit", "submission.weights() & pretrained.pretrained_hashes().keys()", "False", "pretrained submit"),
        ("_send", "left < 1", "False"),
        ("_send", "submission.add_entry(message=message, date=date, ref=None, score=None)",
         "{'sha256': submission.digest}"),
        ("submit", "entry['score'] is not None", "False"),
    ]),
}  # fmt: skip
MUTANTS = [
    Mutant(module, function, expression, replacement, *(others or [tests]))
    for module, (tests, entries) in MUTANTS_BY_MODULE.items()
    for function, expression, replacement, *others in entries
]


def mutate(source: str, mutant: Mutant) -> str:
    """The source of the module with the mutant's fault. Raises ValueError unless the expression occurs once."""
    tree = ast.parse(source)
    scope: ast.AST = tree
    for name in mutant.function.split("."):
        scope = next(node for node in ast.walk(scope) if getattr(node, "name", None) == name)
    old, new = (ast.parse(text, mode="eval").body for text in (mutant.expression, mutant.replacement))
    count = 0

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            nonlocal count
            if ast.dump(node) == ast.dump(old):
                count += 1
                return new
            return self.generic_visit(node)

    Replace().visit(scope)
    if count != 1:
        raise ValueError(f"{mutant}: the expression occurs {count} times")
    return ast.unparse(ast.fix_missing_locations(tree))


def run_tests(folder: Path, names: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run test files in a copy of the checkout until a test fails."""
    files = [
        str(path.relative_to(folder)) for name in names.split() for path in folder.glob(f"tests/**/test_{name}.py")
    ]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


def make_copy(folder: Path) -> Path:
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def is_noticed(mutant: Mutant) -> tuple[bool, str]:
    """Whether a test fails with the mutant's fault, and which."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_copy(Path(name))
        path = folder / "pipeline" / f"{mutant.module.replace('.', '/')}.py"
        path.write_text(mutate(path.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        try:
            run = run_tests(folder, mutant.tests, TIMEOUT)
        except subprocess.TimeoutExpired:
            return True, f"no end within {TIMEOUT} s"
        if run.returncode not in (0, 1):  # 1: a test failed
            raise ValueError(f"{mutant}: pytest ended with exit code {run.returncode}\n{run.stdout}{run.stderr}")
        failed = [line.split(" - ")[0] for line in run.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return run.returncode == 1, failed[0] if failed else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="*", help="only mutants whose description contains one of the texts")
    parser.add_argument("--tenth", type=int, help="only every tenth mutant, from this one on")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at the same time")
    options = parser.parse_args()
    selected = MUTANTS if options.tenth is None else MUTANTS[options.tenth % 10 :: 10]
    selected = [mutant for mutant in selected if not options.text or any(text in str(mutant) for text in options.text)]
    with tempfile.TemporaryDirectory() as name:  # without a fault, the same tests pass in such a copy
        names = " ".join(dict.fromkeys(" ".join(mutant.tests for mutant in selected).split()))
        if run_tests(make_copy(Path(name)), names).returncode:
            print(f"without a mutant, a test of {names} fails")
            return 1
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, (noticed, test) in zip(selected, pool.map(is_noticed, selected), strict=True):
            survivors += not noticed
            print(f"{'noticed' if noticed else 'UNNOTICED':<10}{mutant}  {test}", flush=True)
    print(f"{len(selected) - survivors} passed, {survivors} failed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
