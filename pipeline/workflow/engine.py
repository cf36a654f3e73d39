"""The engine: which results are fresh, stale or missing and why, and running stages.

A result is fresh if its manifest records the settings that the stage reads, the same inputs by content and the same
code, and if its outputs are what the manifest says.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StageError, UserError
from pipeline.machine.environment import describe_environment
from pipeline.recipes import config
from pipeline.workflow import code, locks, publishing, schemas, store
from pipeline.workflow.context import StageContext
from pipeline.workflow.run import Run
from pipeline.workflow.stage import InputDict, InputFile, Stage, State, load_function
from pipeline.workflow.store import FORMAT, Manifest


@dataclass(frozen=True)
class Workflow(Run):
    """A run, and what is done with its stages: which results are fresh, stale or missing and why; running them."""

    def code_roots(self, stage: Stage) -> list[str]:
        """The modules whose code, with all that they import, determines a stage's result."""
        own = stage.run.partition(":")[0]
        used = load_function(stage.code)(self.recipe) if stage.code else ()
        return [*([own] if own.startswith("pipeline.") else []), *used]

    # Freshness

    def state(self, stage: Stage, known: dict[tuple[str, str], State] | None = None, rehash: bool = False) -> State:
        """Whether a stage's result is fresh, stale or missing, and why. `known` caches states within one inspection.

        rehash: of `store.changed_outputs`, for this stage; its inputs are hashed before it runs.
        """
        known = {} if known is None else known
        cache_key = (self.name, stage.name)
        if cache_key not in known:
            try:
                state = self._state(stage, known, rehash)
                if not state.fresh and stage.resumes and self._can_resume(stage):
                    state = State(state.status, f"{state.reason}; an interrupted run can continue".removeprefix("; "))
            except (UserError, OSError) as error:  # something could not be read
                state = State("stale", str(error))
            known[cache_key] = state
        return known[cache_key]

    def _state(self, stage: Stage, known: dict[tuple[str, str], State], rehash: bool) -> State:
        folder = publishing.published_dir(self.folder(stage))
        manifest, damage = store.read_manifest(folder)
        if manifest is None:
            return State("missing", damage)
        if not stage.publishes_itself:
            if manifest.get("format") != FORMAT:
                return State("stale", "made by another version of the pipeline")
            if changes := config.changed_settings(manifest.get("settings", {}), self.settings(stage)):
                return State("stale", ", ".join(changes))
        if reason := self.find_stale_input(stage, known) or self.stale_reason(stage, manifest):
            return State("stale", reason)
        if not stage.publishes_itself:
            if reason := _first_difference(manifest["inputs"], self.input_hashes(stage)):
                return State("stale", reason)
            if reason := code.find_change(manifest, self.code_roots(stage)):
                return State("stale", reason)
        if missing := set(stage.outputs) - manifest["outputs"].keys():
            return State("stale", f"{store.MANIFEST} does not list {min(missing)}")
        if faults := store.changed_outputs(folder, manifest, rehash):
            return State("stale", next(iter(faults.values())))
        if stage.receipt and not store.read_json(folder / stage.receipt, schemas.Receipt):
            return State("stale", f"{stage.receipt} was deleted or is damaged")
        return State("fresh")

    def find_stale_input(self, stage: Stage, known: dict[tuple[str, str], State]) -> str:
        """Which stage that a stage reads from is stale or missing, or ""."""
        for name in stage.inputs:
            if not (state := self.state(self.stages[name], known)).fresh:
                return f"{name} is {state.status}"
        return ""

    def stale_reason(self, stage: Stage, manifest: Manifest) -> str:
        """Why a result is stale although its settings, inputs and code are the same, or ""."""
        return str(load_function(stage.stale_reason)(self, manifest)) if stage.stale_reason else ""

    def _can_resume(self, stage: Stage) -> bool:
        started = store.read_json(publishing.staging_dir(self.folder(stage)) / store.STARTED, schemas.Started)
        return started is not None and config.matches(started, self.key(stage))

    def key(self, stage: Stage) -> dict[str, Any]:
        """What determines a stage's result."""
        return {
            "format": FORMAT,
            "stage": stage.name,
            "settings": self.settings(stage),
            "inputs": self.input_hashes(stage),
            "code": code.digest(self.code_roots(stage)),
        }

    def input_hashes(self, stage: Stage) -> dict[str, str]:
        """The SHA-256 of each file that a stage reads, by the file's name in the manifest."""
        return {file.name: file.sha256 for file in self.list_outputs(stage.inputs)}

    def list_outputs(self, wanted: Mapping[str, Iterable[str]]) -> Iterator[InputFile]:
        """The published outputs of stages. wanted: the names of the outputs, or patterns, by stage."""
        for name, patterns in wanted.items():
            folder = self.published_dir(name)
            for output, digest in (self.manifest(name) or {"outputs": {}})["outputs"].items():
                if any(fnmatch.fnmatch(os.path.basename(output), pattern) for pattern in patterns):
                    yield InputFile(folder / output, digest, name)

    # Running

    def require_fresh(self, names: Iterable[str], user: str) -> None:
        """Raise StageError if the result of a stage that `user` reads is not fresh, and name what makes it."""
        known: dict[tuple[str, str], State] = {}
        for name in names:
            state = self.state(self.stages[name], known)
            if state.fresh:
                continue
            root = name
            while stale := [i for i in self.stages[root].inputs if not self.state(self.stages[i], known).fresh]:
                root = stale[0]
            cause = "" if root == name else f" because {root} is {self.state(self.stages[root], known)}"
            raise StageError(
                f"{user} requires {name}, which is {state.status if cause else state}{cause}: run "
                f"`python run_pipeline.py --stage {root}{self.arguments}` first, or `--stage all`"
            )

    def ensure_fresh(self, stage: Stage, requested: bool = False) -> bool:
        """Run a stage if its result is not fresh, or in any case if it was requested; returns whether it ran."""
        state = self.state(stage, rehash=True) if not requested else State("", "requested")
        if state.fresh and not self.force:
            self.say(f"{stage.name}: fresh")
            return False
        self.say(f"{stage.name}: running" + (f", {state.reason}" if state.reason else ""))
        locks.record_lock_holder(self.workspace, stage.name)
        start = time.monotonic()
        self.run_stage(stage)
        self.say(f"{stage.name}: done in {time.monotonic() - start:.1f} s")
        return True

    def run_stage(self, stage: Stage) -> None:
        """Run one stage, whose inputs are fresh, and publish its result."""
        start = time.time()
        context = self.stage_context(stage)
        run = load_function(stage.run)
        if stage.publishes_itself:
            run(context)
            return
        folder, staging = context.published_dir, context.output_dir
        if self.force or not store.read_intact_manifest(staging, context.key):
            started = store.read_json(staging / store.STARTED, schemas.Started)
            if stage.resumes and started and not config.matches(started, context.key):
                changes = config.changed_settings(started.get("settings", {}), context.key["settings"])
                context.say(f"an interrupted run is not continued ({', '.join(changes) or 'other inputs or code'})")
            # The references to networks of an interrupted run stay until the stage replaces them: see `cleanup`.
            publishing.create_staging_dir(folder, kept=(store.REFERENCES,) if stage.resumes else ())
            store.write_json(staging / store.CONTEXT, context.environment)
            store.write_json(staging / store.STARTED, context.key)
            numbers = run(context) or {}
            context.check_inputs()
            context.environment["seconds"] = round(time.time() - start, 3)
            outputs = [*stage.outputs, *(name for name in stage.optional_outputs if (staging / name).exists())]
            modules = code.modules(self.code_roots(stage))
            store.write_manifest(staging, context.key | {"modules": modules}, outputs, numbers, context.environment)
        publishing.publish(folder, also_kept=[stage.receipt] if stage.receipt else [])

    def stage_context(self, stage: Stage) -> StageContext:
        """What the function of a stage gets. Raises StageError if one of its input files is damaged."""
        files = list(self.list_outputs(stage.inputs))
        self.require_intact(files)
        folder = self.folder(stage)
        manifests = {name: self.manifest(name) for name in stage.inputs}
        environment = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stage": stage.name,
            **self.origin(),
            "assignments": list(self.assignments),
            **describe_environment(self.device),
        }
        return StageContext(
            run=self,
            stage=stage,
            recipe=self.recipe,
            files=InputDict({file.name: file.path for file in files}),
            hashes=InputDict({file.name: file.sha256 for file in files}),
            manifests={name: manifest for name, manifest in manifests.items() if manifest},
            output_dir=folder if stage.publishes_itself else publishing.staging_dir(folder),
            published_dir=folder,
            key=self.key(stage),
            environment=environment,
        )

    def require_intact(self, files: Iterable[InputFile]) -> None:
        """Raise StageError if the content of a file differs from what its stage's manifest records."""
        for file in files:
            if store.sha256(file.path) != file.sha256:  # although its size, time and inode are those recorded
                command = f"--stage {file.stage}{self.arguments} --force"
                raise StageError(f"{file.path} is damaged: run `{command}` to make it again")

    def origin(self) -> dict[str, Any]:
        """What context.json records of --recipe."""
        return {"recipe": self.recipe_argument}

    def restore(self) -> None:
        """Undo publishes that were interrupted."""
        for stage in self.stages.values():
            publishing.restore(self.folder(stage))


def _first_difference(recorded: Mapping[str, str], current: Mapping[str, str]) -> str:
    """The first difference between two dicts from file name to hash in words, or ""."""
    for name in sorted(recorded.keys() | current.keys()):
        if recorded.get(name) != current.get(name):
            if name not in recorded:
                return f"{name} is new"
            return f"{name} changed" if name in current else f"{name} is no longer available"
    return ""
