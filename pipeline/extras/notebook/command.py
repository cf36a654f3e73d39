"""notebook: write a Kaggle notebook that runs the recipe; push it, wait for its run, and fetch the results."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import ROOT
from pipeline.errors import PipelineError, StageError
from pipeline.extras.notebook import kernels, notebook_file
from pipeline.extras.notebook.notebook_file import NotebookRun
from pipeline.kaggle import client
from pipeline.kaggle.client import KaggleError
from pipeline.kaggle.competition import SLUG, TEST_ROWS
from pipeline.recipes.settings import Recipe
from pipeline.training.imagenet import pretrained_models
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.joint import JointWorkflow

NOTEBOOK, METADATA, STATE, OUTPUT = f"{SLUG}.ipynb", "kernel-metadata.json", "push.json", "output"
PLACEHOLDER = "YOUR-KAGGLE-NAME"  # in the metadata, without credentials
# The files that are fetched: results, without the data and the single networks.
RESULTS = r"^(submission\.csv|(submissions|data/runs|data/logs)/(?!.*\.\.).*)$"
POLL_INTERVAL = 20  # seconds between two requests for the status
MAX_FAILURES = 10  # failed requests in a row, after which the waiting ends
LOG_LINES = 15  # shown after a run that failed


def make_notebook(workflow: Workflow) -> None:
    settings = workflow.recipe.notebook
    if workflow.requested_device == "mps":
        raise StageError("--device mps: Kaggle has none; omit it for GPUs, or use --device cpu")
    for recipe in _recipes(workflow):
        if any(not model.weights_file for model in pretrained_models(recipe)):
            raise StageError(
                f"{recipe.name} starts from ImageNet's weights, which the notebook, without internet, cannot download: "
                "attach them as a data set (--set model.weights_file=/kaggle/input/...), or --set model.pretrained=none"
            )
    folder, gpu = workflow.workspace / "data/notebook", workflow.requested_device != "cpu"
    content = _build(workflow, gpu)
    owner = kernels.get_username() if settings.push else os.environ.get("KAGGLE_USERNAME") or PLACEHOLDER
    name = f"{owner}/{make_slug(settings.title)}"
    folder.mkdir(parents=True, exist_ok=True)
    store.write_list(folder, store.own_names(folder))
    store.write(folder / NOTEBOOK, content)
    metadata = notebook_file.kernel_metadata(name, settings.title, NOTEBOOK, SLUG, gpu)
    store.write_json(folder / METADATA, metadata)
    workflow.say(f"{folder / NOTEBOOK} ({len(content):,} bytes)")
    if not settings.push:
        workflow.say(
            "import it on https://www.kaggle.com/code (New Notebook, File, Import Notebook), or let the pipeline push "
            f"it: run_pipeline.py --stage notebook{workflow.arguments} --set notebook.push=true"
        )
        return
    push = _PushedNotebook(workflow, folder, name, store.sha256(folder / NOTEBOOK))
    push.ensure_pushed()
    if push.state["status"] != "fetched":
        if not settings.wait:
            workflow.say("not waiting for the results: the same command with notebook.wait=true fetches them")
            return
        push.wait()
    push.show_submission()


def make_slug(title: str) -> str:
    """The part of a notebook's address that Kaggle forms from its title."""
    return re.sub("[ -]+", "-", title.lower())


def _recipes(workflow: Workflow) -> list[Recipe]:
    """The recipe of a run, or those of a blend."""
    members = workflow.members if isinstance(workflow, JointWorkflow) else [workflow]
    return [member.recipe for member in members]


def _build(workflow: Workflow, gpu: bool) -> bytes:
    """The notebook for the workflow's recipes, with their files and the values of --set."""
    contents = {name: path.read_bytes() for name, path in notebook_file.list_package_files(ROOT).items()}
    names = []
    for recipe in _recipes(workflow):
        names.append(f"{recipe.name}.toml" if recipe.file else recipe.name)
        if recipe.file:
            contents[names[-1]] = Path(recipe.file).read_bytes()
    arguments = ["--stage", "all", "--recipe", ",".join(names)]
    for assignment in workflow.assignments:
        if assignment.strip().partition(".")[0] != "notebook":
            arguments += ["--set", assignment]
    arguments += [] if gpu else ["--device", "cpu"]
    recipes = tuple(recipe.name for recipe in _recipes(workflow))
    return notebook_file.build_notebook(contents, NotebookRun(workflow.name, recipes, tuple(arguments), gpu))


class _PushedNotebook:
    """A notebook on Kaggle, and `push.json`, which records what was pushed.

    Its `status` is pushing (until Kaggle has answered), refused, pushed, failed or fetched.
    """

    def __init__(self, workflow: Workflow, folder: Path, name: str, digest: str) -> None:
        self.workflow, self.folder, self.name, self.digest = workflow, folder, name, digest
        self.state = store.read_json(folder / STATE, schemas.Push) or {}

    def _save(self, **changes: Any) -> None:
        self.state |= changes
        store.write_json(self.folder / STATE, self.state)

    def ensure_pushed(self) -> None:
        """Push the notebook, unless its present content was pushed and its run has not failed."""
        state, say = self.state, self.workflow.say
        same = (state.get("notebook"), state.get("sha256")) == (self.name, self.digest)
        if same and not self.workflow.force:
            if state["status"] == "pushing" and (version := kernels.find_version(self.name, self._marker())):
                self._save(status="pushed", version=version, url=f"https://www.kaggle.com/code/{self.name}")
            if state["status"] in ("pushed", "fetched"):
                fetched = ", and its results were fetched; --force pushes it again" * (state["status"] == "fetched")
                say(f"version {state['version']} was pushed on {state['date']}{fetched}")
                if not (self.folder / OUTPUT).exists():
                    self._save(status="pushed")
                return
        elif state.get("status") == "pushed":
            say(f"version {state['version']} may still run, see {state['url']}; its results are not fetched")
        # Recorded before it is pushed: if this process dies now, the next one asks Kaggle first.
        date = time.strftime("%Y-%m-%d %H:%M:%S%z")
        self.state = {}
        self._save(notebook=self.name, sha256=self.digest, status="pushing", version=None, url=None, date=date)
        try:
            push = kernels.push_notebook(self.folder)
        except KaggleError as error:
            if isinstance(error, kernels.Refused) or error.exit_code == 2:
                self._save(status="refused")
                raise
            raise KaggleError(f"{error}; it may have been pushed: the same command checks this first") from None
        self._save(status="pushed", version=push.version, url=push.url)
        say(f"pushed version {push.version}: {push.url}")

    def _marker(self) -> str:
        """Text that only this notebook contains: the hash of the package, and what it runs."""
        cells = json.loads((self.folder / NOTEBOOK).read_bytes())["cells"]
        return str(cells[1]["source"].splitlines()[0])

    def wait(self) -> None:
        """Wait until the run has ended, and fetch its results. Raises PipelineError if it failed."""
        version, status, failures = f"{self.name}/{self.state['version']}", "", 0
        while True:
            try:
                session, failures = kernels.get_session(version), 0
            except KaggleError as error:
                failures += 1
                if failures == MAX_FAILURES:
                    raise KaggleError(
                        f"the notebook was pushed, but: {error}; the same command continues to wait",
                        user_error=error.exit_code == 2,
                    ) from None
            else:
                if session.status != status:
                    status = session.status
                    self.workflow.say(f"{status.lower().replace('_', ' ')} ({time.strftime('%H:%M:%S')})")
                if status not in kernels.RUNNING:
                    break
            time.sleep(POLL_INTERVAL)
        self._fetch(version)
        if status != kernels.COMPLETE:
            self._show_log()
            self._save(status="failed")
            reason = f" ({session.message})" if session.message else ""
            outcome = "failed" if status == "ERROR" else "was cancelled"
            raise PipelineError(f"the run on Kaggle {outcome}{reason}: see {self._log_file()} and {self.state['url']}")
        self._require_intact_results()
        self._save(status="fetched")

    def _fetch(self, version: str) -> None:
        output = self.folder / OUTPUT
        staging = publishing.create_staging_dir(output)
        with tempfile.TemporaryDirectory() as temporary:
            kernels.fetch_output(version, Path(temporary), RESULTS)
            for path in Path(temporary).iterdir():  # a link there would lead the writes elsewhere
                store.move_aside(staging / path.name)
            for path in Path(temporary).rglob("*"):
                if path.is_file():
                    copy = staging / path.relative_to(temporary)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    store.write(copy, path.read_bytes())
        publishing.publish(output)

    def _log_file(self) -> Path:
        return self.folder / OUTPUT / f"{self.name.split('/')[1]}.log"

    def _show_log(self) -> None:
        """Show the last lines of the log, a JSON array of pieces of output."""
        try:
            text = self._log_file().read_text(encoding="utf-8", errors="replace")
            text = "".join(str(piece["data"]) for piece in json.loads(text))
        except OSError:
            return
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # not the format of 2026: shown as it is
        for line in [line for line in text.splitlines() if line.strip()][-LOG_LINES:]:
            self.workflow.log.say(f"    {line[:500]}")

    def _require_intact_results(self) -> None:
        """Raise PipelineError if the submission is missing, or if a file differs from what its manifest records."""
        output = self.folder / OUTPUT
        if not (output / "submission.csv").exists():
            raise PipelineError(f"the run on Kaggle wrote no submission.csv: see {self._log_file()}")
        damaged = []
        for path in sorted(output.rglob(store.MANIFEST)):
            manifest, damage = store.read_manifest(path.parent)
            damaged += list(store.changed_outputs(path.parent, manifest)) if manifest else [damage]
        recorded = self._receipt().get("sha256", {}).get("submission.csv")
        if damaged or recorded != store.sha256(output / "submission.csv"):
            raise PipelineError(
                f"the download from Kaggle is damaged ({', '.join(damaged) or 'submission.csv'}): run the same command "
                "again"
            )

    def _receipt(self) -> dict[str, Any]:
        name = self.workflow.name
        return store.read_json(self.folder / OUTPUT / f"submissions/{name}/submission.json", schemas.Receipt) or {}

    def show_submission(self) -> None:
        """Say where the results are, and the command that submits them."""
        receipt, submission = self._receipt(), self.folder / OUTPUT / "submission.csv"
        accuracy = receipt.get("validation", {}).get("accuracy")
        say = self.workflow.say
        say(f"results in {submission.parent}" + (f"; validation accuracy {accuracy:.4f}" if accuracy else ""))
        if receipt.get("can_be_submitted"):
            self.workflow.report("submit", client.submit_command(str(submission), receipt))
        else:
            say(f"it cannot be sent: the notebook's data were not the competition's {TEST_ROWS:,} test rows")
