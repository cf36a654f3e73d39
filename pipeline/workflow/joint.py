"""A run over several recipes, whose results a stage compares or averages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StageError
from pipeline.workflow import publishing
from pipeline.workflow.context import StageContext
from pipeline.workflow.engine import Workflow
from pipeline.workflow.stage import Stage, State
from pipeline.workflow.store import Manifest


@dataclass(frozen=True)
class JointWorkflow(Workflow):
    """A run of a stage that reads the results of several recipes. Each of these has a run of its own.

    `recipe` is the first one; only the settings that are the same for all of them are read from it.
    """

    members: tuple[Workflow, ...] = ()
    title: str = ""  # names the result's folder
    names: tuple[str, ...] = ()  # the recipes, or folders of recipes, as in --recipe
    left_out: tuple[str, ...] = ()  # recipes that cannot take part on this machine

    @classmethod
    def of(cls, stage: Stage, members: Sequence[Workflow], title: str, names: Sequence[str]) -> JointWorkflow:
        """The run of a stage. If the stage makes a submission, it takes the place of `predict`."""
        options = {field.name: getattr(members[0], field.name) for field in dataclasses.fields(Workflow)}
        stages = {**members[0].stages, stage.name: stage, **({"predict": stage} if stage.receipt else {})}
        return cls(**options | {"stages": stages}, members=tuple(members), title=title, names=tuple(names))

    @property
    def name(self) -> str:
        return self.title

    @property
    def recipe_argument(self) -> str:
        return ",".join(self.names)

    def origin(self) -> dict[str, Any]:
        return {"recipes": list(self.names)}

    def settings(self, stage: Stage) -> dict[str, Any]:
        return {member.name: member.settings(stage) for member in self.members}

    def code_roots(self, stage: Stage) -> list[str]:
        return sorted({root for member in self.members for root in member.code_roots(stage)})

    def find_stale_input(self, stage: Stage, known: dict[tuple[str, str], State]) -> str:
        for member in self.members:
            if reason := member.find_stale_input(stage, known):
                return f"{member.name}: {reason}"
        return ""

    def stale_reason(self, stage: Stage, manifest: Manifest) -> str:
        return next(filter(None, (member.stale_reason(stage, manifest) for member in self.members)), "")

    def input_hashes(self, stage: Stage) -> dict[str, str]:
        """By path below the workspace: the recipes share some inputs."""
        return {
            f"{member.place(self.stages[file.stage])}/{file.path.name}": file.sha256
            for member in self.members
            for file in member.list_outputs(stage.inputs)
        }

    def stage_context(self, stage: Stage) -> StageContext:
        first, *others = [member.stage_context(stage) for member in self.members]
        folder = self.folder(stage)
        environment = first.environment | {"recipe": "", **self.origin()}
        shared = dataclasses.replace(
            first,
            run=self,
            output_dir=publishing.staging_dir(folder),
            published_dir=folder,
            key=self.key(stage),
            environment=environment,
        )
        inputs = ("recipe", "files", "hashes", "manifests")
        shared.members = [
            dataclasses.replace(shared, **{name: getattr(each, name) for name in inputs}) for each in (first, *others)
        ]
        return shared

    def require_fresh(self, names: Iterable[str], user: str) -> None:
        for name in names:
            stage = self.stages[name]
            if not stage.join:
                self.members[0].require_fresh([name], user)
            elif not (state := self.state(stage)).fresh:
                raise StageError(
                    f"{user} requires {stage.name}, which is {state}: run "
                    f"`python run_pipeline.py --stage {stage.name}{self.arguments}` first, or `--stage all`"
                )

    def restore(self) -> None:
        for member in self.members:
            member.restore()
        for stage in self.stages.values():
            if stage.join:
                publishing.restore(self.folder(stage))
