"""Runs, edits, deletions and crashes of toy stages in any order: what must be fresh follows from the files alone."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline import artifacts
from pipeline.stages import engine
from tests import toy_stages
from tests.interference import Points

NAMES = tuple(toy_stages.STAGES)


class Crash(BaseException):
    """The process ends here, as far as the engine can tell."""


class Engine(RuleBasedStateMachine):
    """The oracle: a stage is fresh where its file holds what today's settings and its needs' files give, its record
    is whole, and its needs are fresh."""

    @initialize()
    def begin(self):
        self.workspace = Path(tempfile.mkdtemp())
        (self.workspace / "in.txt").write_text("a")
        self.seed, self.shift = 0, 0
        self.broken = set()  # stages whose manifest is no good

    def teardown(self):
        if hasattr(self, "workspace"):
            shutil.rmtree(self.workspace)

    def call(self, force=False):
        return toy_stages.call(self.workspace, self.seed, self.shift, force)

    def fresh(self):
        """Names of the stages that must be fresh."""
        texts, found = toy_stages.contents(self.workspace), set()
        copied = (self.workspace / "in.txt").read_text()
        made_now = {
            "take": copied,
            "left": toy_stages.left(self.seed, texts["take"]),
            "right": toy_stages.right(((self.shift, 0),), texts["left"], texts["take"]),
        }
        for name, needs in (("take", ()), ("left", ("take",)), ("right", ("left", "take"))):
            if texts[name] == made_now[name] and name not in self.broken and found.issuperset(needs):
                found.add(name)
        return found

    @invariant()
    def agrees(self):
        if not hasattr(self, "workspace"):
            return
        call = self.call()
        said = {name for name, stage in call.stages.items() if engine.state(call, stage)[0] == "fresh"}
        assert said == self.fresh()

    @rule(force=st.booleans())
    def run_all(self, force):
        stale = set(NAMES) - self.fresh()
        ran = toy_stages.run_all(self.call(force))
        assert set(ran) == set(NAMES) if force else stale >= set(ran)  # early ones may come out as they were
        self.broken.clear()
        assert self.fresh() == set(NAMES)
        assert toy_stages.contents(self.workspace) == toy_stages.expected(self.workspace, self.seed, self.shift)

    @rule(name=st.sampled_from(NAMES))
    def run_one(self, name):
        call, stage = self.call(), toy_stages.STAGES[name]
        engine.restore_all(call)
        if self.fresh().issuperset(stage.needs):
            engine.require_needs(call, stage)
            engine.run_stage(call, stage)
            self.broken.discard(name)
            assert name in self.fresh()
        else:
            with pytest.raises(engine.StageError, match="first, or `--stage all`"):
                engine.require_needs(call, stage)

    @rule(at=st.integers(0, 170), force=st.booleans())
    def crash(self, at, force):
        """A run that is cut off at one of its moments, as `kill -9` does, but for the clearing up in this process."""

        def cut(point, path):
            raise Crash

        before = toy_stages.contents(self.workspace)
        try:
            with Points(at, cut):
                toy_stages.run_all(self.call(force))
        except Crash:
            pass
        after = toy_stages.contents(self.workspace)
        whole = toy_stages.expected(self.workspace, self.seed, self.shift)
        for name in NAMES:
            assert after[name] in (before[name], whole[name])
            folder = (self.workspace / toy_stages.OUTPUTS[name]).parent
            if artifacts.read_manifest(artifacts.standing(folder))[0]:
                self.broken.discard(name)

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
            shutil.rmtree(path.parent, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(("", "{", "[]", '{"stage": 5}')))
    def spoil_a_manifest(self, name, text):
        path = (self.workspace / toy_stages.OUTPUTS[name]).parent / artifacts.MANIFEST
        if path.exists():
            path.write_text(text)
            self.broken.add(name)


class TestEngine(Engine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.slow
class TestEngineLonger(Engine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
