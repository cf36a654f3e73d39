"""Runs, edits, deletions and crashes of toy stages in any order: what must be fresh follows from the files alone."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.errors import StageError
from pipeline.workflow import publishing, store
from tests import toy_stages
from tests.interference import Points

NAMES = tuple(toy_stages.STAGES)
DAMAGED = ("", "{", "[]", '{"stage": 5}')  # manifests


class Crash(BaseException):
    """The process ends here, as far as the workflow can tell."""


class WorkflowMachine(RuleBasedStateMachine):
    """The oracle: a stage is fresh if its file contains what the current settings and its input files give, its
    manifest is intact, and its inputs are fresh."""

    @initialize()
    def begin(self):
        self.workspace = Path(tempfile.mkdtemp())
        (self.workspace / "in.txt").write_text("a")
        self.seed, self.shift = 0, 0

    def teardown(self):
        if hasattr(self, "workspace"):
            shutil.rmtree(self.workspace)

    def workflow(self, force=False):
        return toy_stages.make_workflow(self.workspace, self.seed, self.shift, force)

    def fresh(self):
        """Names of the stages that must be fresh."""
        texts, fresh = toy_stages.contents(self.workspace), set()
        current = {
            "take": (self.workspace / "in.txt").read_text(),
            "left": toy_stages.left(self.seed, texts["take"]),
            "right": toy_stages.right(((self.shift, 0),), texts["left"], texts["take"]),
        }
        for name, inputs in (("take", ()), ("left", ("take",)), ("right", ("left", "take"))):
            if texts[name] == current[name] and self.has_manifest(name) and fresh.issuperset(inputs):
                fresh.add(name)
        return fresh

    def has_manifest(self, name):
        """Whether the result that counts, which may be X.previous, has a manifest that is not damaged."""
        folder = publishing.published_dir((self.workspace / toy_stages.OUTPUTS[name]).parent)
        return (folder / store.MANIFEST).exists() and (folder / store.MANIFEST).read_text() not in DAMAGED

    @invariant()
    def agrees(self):
        if hasattr(self, "workspace"):
            workflow = self.workflow()
            assert {name for name in NAMES if workflow.state(workflow.stages[name]).fresh} == self.fresh()

    @rule(force=st.booleans())
    def run_all(self, force):
        stale = set(NAMES) - self.fresh()
        ran = toy_stages.run_all(self.workflow(force))
        assert set(ran) == set(NAMES) if force else stale >= set(ran)  # the output of an early stage may be unchanged
        assert self.fresh() == set(NAMES)
        assert toy_stages.contents(self.workspace) == toy_stages.expected(self.workspace, self.seed, self.shift)

    @rule(name=st.sampled_from(NAMES))
    def run_one(self, name):
        workflow, stage = self.workflow(), toy_stages.STAGES[name]
        workflow.restore()
        if self.fresh().issuperset(stage.inputs):
            workflow.require_fresh(stage.inputs, stage.name)
            workflow.run_stage(stage)
            assert name in self.fresh()
        else:
            with pytest.raises(StageError, match="first, or `--stage all`"):
                workflow.require_fresh(stage.inputs, stage.name)

    @rule(at=st.integers(0, 400), force=st.booleans())
    def crash(self, at, force):
        """A run that ends at one of its file operations, as with `kill -9`, except for cleaning up in this process."""

        def end(point, path):
            raise Crash

        before = toy_stages.contents(self.workspace)
        try:
            with Points(at, end):
                toy_stages.run_all(self.workflow(force))
        except Crash:
            pass
        after = toy_stages.contents(self.workspace)
        complete = toy_stages.expected(self.workspace, self.seed, self.shift)
        for name in NAMES:
            assert after[name] in (before[name], complete[name])

    @rule(seed=st.integers(0, 2))
    def change_left(self, seed):
        self.seed = seed

    @rule(shift=st.integers(0, 2))
    def change_right(self, shift):
        self.shift = shift

    @rule(text=st.sampled_from("abc"))
    def edit_the_source(self, text):
        (self.workspace / "in.txt").write_text(text)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(("edited", "")))
    def edit_a_result(self, name, text):
        path = self.workspace / toy_stages.OUTPUTS[name]
        if path.exists():
            path.write_text(text)

    @rule(name=st.sampled_from(NAMES), whole=st.booleans())
    def delete(self, name, whole):
        path = self.workspace / toy_stages.OUTPUTS[name]
        if whole:
            shutil.rmtree(path.parent, ignore_errors=True)  # a crash may have left X.previous, which counts now
        else:
            path.unlink(missing_ok=True)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(DAMAGED))
    def damage_a_manifest(self, name, text):
        path = (self.workspace / toy_stages.OUTPUTS[name]).parent / store.MANIFEST
        if path.exists():
            path.write_text(text)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_while_the_previous_result_is_deleted_and_then_the_new_one_is_lost(damaged):
    """For each moment of the crash: random sequences rarely have one of these."""

    def machine():
        machine = WorkflowMachine()
        machine.begin()
        machine.run_all(force=False)
        if damaged:
            machine.damage_a_manifest(name="right", text="{")
        return machine

    points, first = [], machine()
    with Points(note=points.append):
        toy_stages.run_all(first.workflow(force=True))
    first.teardown()
    for at in range(points.index("after rename right"), len(points)):
        each = machine()
        each.crash(at=at, force=True)
        each.delete(name="right", whole=True)
        each.agrees()
        each.run_all(force=False)
        each.teardown()


class TestWorkflow(WorkflowMachine.TestCase):
    settings = settings(max_examples=8, stateful_step_count=20, deadline=None)


@pytest.mark.slow
class TestWorkflowLonger(WorkflowMachine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
