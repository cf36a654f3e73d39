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
from pipeline.recipes.settings import Recipe
from pipeline.workflow import code, locks, publishing, schemas, store
from pipeline.workflow.context import StageContext, StageInputs
from pipeline.workflow.run import Run
from pipeline.workflow.stage import InputDict, InputFile, Stage, State, load_function
from pipeline.workflow.store import FORMAT


@dataclass(frozen=True)
class Workflow(Run):
    """A run, and what is done with its stages: which results are fresh, stale or missing and why; running them."""

    def code_roots(self, stage: Stage) -> list[str]:
        """The modules whose code, with all that they import, determines a stage's result."""
        own = stage.run.partition(":")[0]
        used = {name for recipe in self.recipes for name in load_function(stage.code)(recipe)} if stage.code else set()
        return [*([own] if own.startswith("pipeline.") else []), *sorted(used)]

    # Freshness

    def state(self, stage: Stage, known: dict[tuple[str, str], State] | None = None) -> State:
        """Whether a stage's result is fresh, stale or missing, and why. `known` caches states within one inspection."""
        known = {} if known is None else known
        if stage.per_recipe and len(self.recipes) > 1:
            states = [self.for_recipe(recipe).state(stage, known) for recipe in self.recipes]
            return next((state for state in states if not state.fresh), State("fresh"))
        cache_key = (self.name, stage.name)
        if cache_key not in known:
            try:
                state = self._state(stage, known)
                if not state.fresh and stage.resumes and self._can_resume(stage, known):
                    state = State(state.status, f"{state.reason}; an interrupted run can continue".removeprefix("; "))
            except (UserError, OSError) as error:  # something could not be read
                state = State("stale", str(error))
            known[cache_key] = state
        return known[cache_key]

    def _state(self, stage: Stage, known: dict[tuple[str, str], State]) -> State:
        folder = publishing.published_dir(self.folder(stage))
        manifest, damage = store.read_manifest(folder)
        if manifest is None:
            return State("missing", damage)
        if not stage.publishes_itself:
            if manifest.get("format") != FORMAT:
                return State("stale", "made by another version of the pipeline")
            if changes := config.changed_settings(manifest.get("settings", {}), self.settings(stage)):
                return State("stale", ", ".join(changes))
        for name in stage.inputs:
            if not (state := self.state(self.stages[name], known)).fresh:
                return State("stale", f"{name} is {state.status}")
        if stage.stale_reason and (reason := load_function(stage.stale_reason)(self, manifest)):
            return State("stale", reason)
        if not stage.publishes_itself:
            inputs = {file.full_name: file.sha256 for file in self._input_files(stage, known)}
            if reason := _first_difference(manifest["inputs"], inputs):
                return State("stale", reason)
            if reason := code.find_change(manifest, self.code_roots(stage)):
                return State("stale", reason)
        if missing := set(stage.outputs) - manifest["outputs"].keys():
            return State("stale", f"{store.MANIFEST} does not list {min(missing)}")
        if faults := store.changed_outputs(folder, manifest):
            return State("stale", next(iter(faults.values())))
        if stage.receipt and not store.read_json(folder / stage.receipt, schemas.Receipt):
            return State("stale", f"{stage.receipt} was deleted or is damaged")
        return State("fresh")

    def _can_resume(self, stage: Stage, known: dict[tuple[str, str], State]) -> bool:
        started = store.read_json(publishing.staging_dir(self.folder(stage)) / store.STARTED, schemas.Started)
        return started is not None and config.matches(started, self._key(stage, self._input_files(stage, known)))

    def _key(self, stage: Stage, files: Iterable[InputFile]) -> dict[str, Any]:
        """What determines a stage's result."""
        return {
            "format": FORMAT,
            "stage": stage.name,
            "settings": self.settings(stage),
            "inputs": {file.full_name: file.sha256 for file in files},
            "code": code.digest(self.code_roots(stage)),
        }

    def _input_files(self, stage: Stage, known: dict[tuple[str, str], State] | None = None) -> Iterator[InputFile]:
        """The outputs of earlier stages that a stage reads."""
        wanted = dict(stage.inputs)
        for name, patterns in stage.extra_inputs.items():
            if name in self.stages and self.state(self.stages[name], known).fresh:
                wanted[name] = patterns
        for name, patterns in wanted.items():
            separate = self.stages[name].per_recipe and len(self.recipes) > 1
            for workflow in [self.for_recipe(recipe) for recipe in self.recipes] if separate else [self]:
                folder = workflow.published_dir(name)
                manifest, _ = store.read_manifest(folder)
                for output, digest in (manifest or {"outputs": {}})["outputs"].items():
                    basename = os.path.basename(output)
                    if any(fnmatch.fnmatch(basename, pattern) for pattern in patterns):
                        yield InputFile(folder / output, digest, name, workflow.name if separate else "")

    # Running

    def require_inputs(self, stage: Stage) -> None:
        """Raise StageError if an input of a stage is missing or stale, naming the command that makes it."""
        known: dict[tuple[str, str], State] = {}
        for name in stage.inputs:
            state = self.state(self.stages[name], known)
            if state.fresh:
                continue
            root = name
            while stale := [i for i in self.stages[root].inputs if not self.state(self.stages[i], known).fresh]:
                root = stale[0]
            cause = "" if root == name else f" because {root} is {self.state(self.stages[root], known)}"
            raise StageError(
                f"{stage.name} requires {name}, which is {state.status if cause else state}{cause}: run "
                f"`python run_pipeline.py --stage {root}{self.arguments}` first, or `--stage all`"
            )

    def ensure_fresh(self, stage: Stage, requested: bool = False) -> None:
        """Run a stage if its result is not fresh, or in any case if it was requested by name."""
        if stage.per_recipe and len(self.recipes) > 1:
            for recipe in self.recipes:
                self.say(f"{stage.name}: recipe {recipe.name}")
                self.for_recipe(recipe).ensure_fresh(stage, requested)
            return
        state = self.state(stage) if not requested else State("", "requested")
        if state.fresh and not self.force:
            self.say(f"{stage.name}: fresh")
            return
        self.say(f"{stage.name}: running" + (f", {state.reason}" if state.reason else ""))
        locks.record_lock_holder(self.workspace, stage.name)
        start = time.monotonic()
        self.run_stage(stage)
        self.say(f"{stage.name}: done in {time.monotonic() - start:.1f} s")

    def run_stage(self, stage: Stage) -> None:
        """Run one stage, whose inputs are fresh, and publish its result."""
        start = time.time()
        context = self._stage_context(stage)
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

    def _stage_context(self, stage: Stage) -> StageContext:
        known: dict[tuple[str, str], State] = {}
        files = list(self._input_files(stage, known))
        for file in files:
            if store.sha256(file.path) != file.sha256:  # although its size, time and inode are those recorded
                command = f"--stage {file.stage}{self.arguments} --force"
                raise StageError(f"{file.path} is damaged: run `{command}` to make it again")
        folder = self.folder(stage) if stage.folder else self.workspace
        staging = folder if stage.publishes_itself else publishing.staging_dir(folder)
        parts = [self._stage_inputs(stage, recipe, files) for recipe in self.recipes]
        environment = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "recipe": self.recipe_argument,
            "recipe_file": self.recipes[0].file,
            "assignments": list(self.assignments),
            **describe_environment(self.device),
        }
        missing = State("missing")  # of an extra that was deleted
        states = {
            name: self.state(self.stages[name], known) if name in self.stages else missing
            for name in stage.extra_inputs
        }
        return StageContext(self, stage, staging, folder, self._key(stage, files), parts, environment, states)

    def _stage_inputs(self, stage: Stage, recipe: Recipe, files: Iterable[InputFile]) -> StageInputs:
        workflow, own = self.for_recipe(recipe), [file for file in files if file.recipe in ("", recipe.name)]
        manifests = {name: (workflow if self.stages[name].per_recipe else self).manifest(name) for name in stage.inputs}
        return StageInputs(
            recipe,
            config.select_settings(recipe, stage.settings),
            InputDict({file.name: file.path for file in own}),
            InputDict({file.name: file.sha256 for file in own}),
            {name: manifest for name, manifest in manifests.items() if manifest},
        )

    def restore(self) -> None:
        """Undo publishes that were interrupted."""
        for stage in self.stages.values():
            if stage.folder:
                for recipe in self.recipes if stage.per_recipe else self.recipes[:1]:
                    workflow = self.for_recipe(recipe) if stage.per_recipe else self
                    publishing.restore(workflow.folder(stage))


def _first_difference(recorded: Mapping[str, str], current: Mapping[str, str]) -> str:
    """The first difference between two dicts from file name to hash in words, or ""."""
    for name in sorted(recorded.keys() | current.keys()):
        if recorded.get(name) != current.get(name):
            if name not in recorded:
                return f"{name} is new"
            return f"{name} changed" if name in current else f"{name} is no longer available"
    return ""
