"""How stages run: fresh, stale or missing; running one; publishing what it made.

A result is fresh where its manifest says the same stage version, the same values of the settings that the stage
reads, and the same inputs by content, and its outputs are still what the manifest says.
"""

import fnmatch
import hashlib
import importlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pipeline import artifacts
from pipeline.settings import SECTIONS, Recipe, as_plain
from pipeline.stages import machine

MARGIN = 4 << 20  # bytes on the disk beside what a stage's `space` says: pictures, manifests, logs


class StageError(ValueError):
    """A stage cannot run as things stand; the message says what to do, in one line."""


class InputChanged(RuntimeError):
    """An input changed while a stage read it: its result was not published."""


class NoSpace(RuntimeError):
    """The disk is too full for what a stage will write."""


@dataclass(frozen=True)
class Stage:
    name: str
    version: int
    # The result's folder below the workspace; None where the stage leaves none.
    folder: Callable[[Recipe], str] | None = None
    # The sections of the recipe ("train"), or single settings ("train.fit_all"), that `run` sees, and whose change
    # makes the result stale.
    reads: tuple[str, ...] = ()
    # Which outputs (by name or pattern) of which earlier stages are its inputs.
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Outputs of other recipes' results that are inputs too: of a call, by input name, the folder and the output in it;
    # one that is not there is left out.
    others: Callable | None = None
    # What it leaves, below its folder.
    outputs: tuple[str, ...] = ()
    # What it leaves in some cases.
    may_leave: tuple[str, ...] = ()
    # A file that must be there but may change afterwards.
    receipt: str | None = None
    # Runs only where it is asked for by name.
    by_name: bool = False
    # An interrupted run goes on in the `.partial` folder that it left.
    resumes: bool = False
    # Publishes by itself, and has no inputs.
    publishes_itself: bool = False
    # `check(folder, data, manifest)` says why else what is there is stale, or nothing.
    check: Callable | None = None
    # In `pipeline.stages`, where its `run` is; "": of its own name.
    module: str = ""


@dataclass
class Call:
    """One call of the command line."""

    stages: dict[str, Stage]
    workspace: Path
    recipe: Recipe
    named: str = ""  # how the recipe was given, if it was, and
    options: str = ""  # how to repeat the call's other options in a hint
    data: str = "auto"
    device: str = "cpu"
    asked: str = "auto"  # the device that was asked for, which another machine may have although this one has not
    tracker: str = "none"  # who else is shown the training's figures
    engine: str = "local"  # where an ensemble's members are trained
    force: bool = False
    say: Callable[[str], None] = print
    note: Callable[[str], None] = lambda text: None  # for the log alone
    tell: Callable[[str], None] = lambda stage: None  # for who waits for the workspace: which stage runs

    @property
    def words(self):
        return (f" --recipe {shlex.quote(self.named)}" if self.named else "") + self.options

    def place(self, stage):
        # Resolved: what is renamed is the folder, where a link stands in its place.
        return (self.workspace / stage.folder(self.recipe)).resolve()


@dataclass
class Job:
    """What a stage's `run` is given."""

    settings: SimpleNamespace  # the sections that the stage reads, and no others
    folder: Path  # where to write
    place: Path | None  # where the folder will be published; holds the result before this one, if any
    key: dict  # stage, version, settings read, input hashes
    manifests: dict[str, dict]  # of the stages it needs
    call: Call
    context: dict = field(default_factory=dict)  # to be recorded, and not deterministic
    paths: dict[str, Path] = field(default_factory=dict)  # of the inputs, by "stage/name"

    def check_inputs(self):
        """Hash the inputs again. Raises InputChanged where one is not what it was when the stage began."""
        for name, path in self.paths.items():
            if artifacts.sha256(path) != self.key["inputs"][name]:
                raise InputChanged(f"{path} changed while {self.key['stage']} ran: nothing was published, run it again")


def digest(recipe, *sections):
    """A short name for the values of some of a recipe's sections, or single settings."""
    values = {section: as_plain(part) for section, part in _parts(recipe, sections).items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _parts(recipe, reads):
    """By section: the section, or an object with nothing but the one setting of it that is read."""
    parts = {}
    for name in reads:
        section, dot, key = name.partition(".")
        whole = getattr(recipe, section)
        parts[section] = SimpleNamespace(**{key: getattr(whole, key)}) if dot else whole
    return parts


def recipe_hash(recipe):
    """SHA-256 of all settings that a submission's content can depend on."""
    values = {
        name: as_plain(getattr(recipe, name))
        for name in SECTIONS
        if name not in ("estimate", "explore", "inspect", "published", "submit")
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


ACCURACY = ("augment", "affine", "model", "ensemble", "train", "predict")  # sections


def accuracy_hash(settings):
    """SHA-256 of the settings that the accuracy on other rows depends on: not the split, not the seed.

    settings: a recipe, or whatever else has the sections ACCURACY.
    """
    values = {name: as_plain(getattr(settings, name)) for name in ACCURACY}
    for name in ("seed", "fit_all", "deterministic"):
        del values["train"][name]
    del values["ensemble"]["threads"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def state(call, stage, known=None):
    """("fresh" | "stale" | "missing", why) of a stage's result. `known` keeps the answers within one look."""
    known = {} if known is None else known
    if stage.name not in known:
        try:
            known[stage.name] = _state(call, stage, known)
        except (ValueError, OSError) as error:  # what a check could not read
            known[stage.name] = ("stale", str(error))
        how, why = known[stage.name]
        if how != "fresh" and stage.resumes and can_resume(call, stage):
            known[stage.name] = (how, f"{why}; an interrupted run can go on".removeprefix("; "))
    return known[stage.name]


def _state(call, stage, known):
    folder = artifacts.standing(call.place(stage))
    manifest, damage = artifacts.read_manifest(folder)
    if manifest is None:
        return "missing", damage
    if manifest["stage"] != stage.name or manifest["version"] != stage.version:
        return "stale", f"made by {manifest['stage']} version {manifest['version']}, now {stage.version}"
    changes = list(_changed_settings(manifest["settings"], _settings(call, stage)))
    if changes:
        return "stale", ", ".join(changes)
    for need in stage.needs:
        how, _ = state(call, call.stages[need], known)
        if how != "fresh":
            return "stale", f"{need} is {how}"
    why = stage.check(folder, call.data, manifest) if stage.check else ""
    if why:
        return "stale", why
    if not stage.publishes_itself:
        now = _recorded_inputs(call, stage)
        for name in sorted(now.keys() | manifest["inputs"].keys()):
            if now.get(name) != manifest["inputs"].get(name):
                how = (
                    "changed"
                    if name in now and name in manifest["inputs"]
                    else "is new"
                    if name in now
                    else "is gone or stale"
                )
                return "stale", f"{name} {how}"
    faults = artifacts.changed_outputs(folder, manifest)
    if faults:
        return "stale", next(iter(faults.values()))
    if stage.receipt and not artifacts.read_json(folder / stage.receipt):
        return "stale", f"{stage.receipt} was deleted or is damaged"
    return "fresh", ""


def require_needs(call, stage):
    """Raise StageError where a stage's inputs are missing or stale, naming the command that mends it."""
    known = {}
    for need in stage.needs:
        how, why = state(call, call.stages[need], known)
        if how != "fresh":
            root = need
            while broken := [n for n in call.stages[root].needs if state(call, call.stages[n], known)[0] != "fresh"]:
                root = broken[0]
            _, root_why = state(call, call.stages[root], known)
            reason = f" ({why})" if why else ""
            if root != need:
                reason = f" ({root}: {root_why})" if root_why else f" ({root} is missing)"
            raise StageError(
                f"{stage.name} needs {need}, which is {how}{reason}: "
                f"run `python run_pipeline.py --stage {root}{call.words}` first, or `--stage all`"
            )


def bring_about(call, stage, why=""):
    """Run a stage where it is not fresh, or because of what `why` says."""
    how, reason = ("", why) if why else state(call, stage)
    if how == "fresh" and not call.force:
        call.say(f"{stage.name}: fresh")
        return
    call.say(f"{stage.name}: running" + (f", {reason}" if reason else ""))
    call.tell(stage.name)
    began = time.monotonic()
    run_stage(call, stage)
    call.say(f"{stage.name}: done in {time.monotonic() - began:.1f} s")


def run_stage(call, stage):
    """Run one stage, whose needs are fresh, and publish its result."""
    started = time.time()
    module = importlib.import_module(f"pipeline.stages.{stage.module or stage.name}")
    manifests = {need: _manifest(call, call.stages[need]) for need in stage.needs}
    paths = _input_paths(call, stage)
    inputs = {name: artifacts.sha256(path) for name, path in paths.items()}
    for name, digest in _recorded_inputs(call, stage).items():
        if inputs[name] != digest:  # although its size, time and inode are those recorded
            made = name.split("/")[0]
            how = f"`--stage {made}{call.words} --force`" if made in call.stages else "its recipe with --force"
            raise StageError(f"{paths[name]} is damaged: run {how} to make it again")
    key = {
        "stage": stage.name,
        "version": stage.version,
        "settings": _settings(call, stage),
        "inputs": inputs,
    }
    settings = SimpleNamespace(**_parts(call.recipe, stage.reads))
    place = call.place(stage) if stage.folder else None
    job = Job(settings, place, place, key, manifests, call, _context(call), paths)
    _require_space(job, module.space(job))
    if stage.publishes_itself:
        return module.run(job)

    partial, _ = artifacts.beside(place)
    job.folder = partial
    if not _is_finished(partial, key) or call.force:
        before = artifacts.read_json(partial / artifacts.STARTED)
        if call.force or not (stage.resumes and before == key):
            if stage.resumes and before:
                changes = ", ".join(_changed_settings(before.get("settings", {}), key["settings"]))
                call.say(f"{stage.name}: an interrupted run is given up ({changes or 'other inputs, or --force'})")
            artifacts.begin(place)
            artifacts.write_json(partial / artifacts.CONTEXT, job.context)
            artifacts.write_json(partial / artifacts.STARTED, key)
        numbers = module.run(job)
        job.check_inputs()
        job.context["seconds"] = round(time.time() - started, 3)
        outputs = [*stage.outputs, *(name for name in stage.may_leave if (partial / name).exists())]
        artifacts.write_manifest(partial, key, outputs, numbers, job.context)
    kept = {*stage.outputs, *stage.may_leave, stage.receipt, artifacts.MANIFEST, artifacts.CONTEXT}
    for path in partial.iterdir():
        if path.name not in kept:  # a checkpoint has served
            path.unlink()
    artifacts.publish(place)


def _require_space(job, needed):
    """Raise NoSpace where less than `needed` bytes are free: better now than after an hour of training."""
    free = shutil.disk_usage(job.call.workspace).free
    if free < needed + MARGIN:
        raise NoSpace(
            f"{job.key['stage']} writes up to {(needed + MARGIN) / 1e6:,.0f} MB, and {job.call.workspace} has "
            f"{free / 1e6:,.0f} MB free: make room (--clean lists what no recipe uses), or give another --workspace"
        )


def has(device):
    """Whether this machine has such a device."""
    import torch  # not above: --status, --list and --help must be quick

    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]


def choose_device(asked):
    """The device to compute on. Raises StageError where there is none of the kind that is asked for."""
    if asked == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if has(device))
    if not has(asked):
        raise StageError(f"--device {asked}: PyTorch finds none here; leave --device out, or say cpu")
    return asked


def restore_all(call):
    """Bring back what a publishing that was cut off had moved aside."""
    for stage in call.stages.values():
        if stage.folder:
            artifacts.restore(call.place(stage))


def can_resume(call, stage):
    """Whether a run stopped on the way and its settings are still the recipe's."""
    partial, _ = artifacts.beside(call.place(stage))
    started = artifacts.read_json(partial / artifacts.STARTED)
    return started is not None and started.get("settings") == _settings(call, stage)


def _is_finished(partial, key):
    """Whether a run of this very key ended, and was stopped between its manifest and its publishing."""
    manifest, _ = artifacts.read_manifest(partial)
    return manifest is not None and all(manifest[name] == value for name, value in key.items())


def _manifest(call, stage):
    manifest, _ = artifacts.read_manifest(artifacts.standing(call.place(stage)))
    return manifest


def _settings(call, stage):
    return {section: as_plain(part) for section, part in _parts(call.recipe, stage.reads).items()}


def _changed_settings(before, now):
    for section in sorted(before.keys() | now.keys()):
        old, new = before.get(section, {}), now.get(section, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{section}.{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"


def _shown(value):
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _wanted_outputs(call, stage):
    """Pairs of "stage/name" and the output's own name, of the outputs that a stage needs."""
    for need, patterns in stage.needs.items():
        for output in _manifest(call, call.stages[need])["outputs"]:
            name = os.path.basename(output)
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                yield need, f"{need}/{name}", output


def _recorded_inputs(call, stage):
    found = {
        name: _manifest(call, call.stages[need])["outputs"][output]
        for need, name, output in _wanted_outputs(call, stage)
    }
    return found | {name: manifest["outputs"][output] for name, _, manifest, output in _others(call, stage)}


def _input_paths(call, stage):
    found = {
        name: artifacts.standing(call.place(call.stages[need])) / output
        for need, name, output in _wanted_outputs(call, stage)
    }
    return found | {name: folder / output for name, folder, _, output in _others(call, stage)}


def _others(call, stage):
    """Name, folder, manifest and output of each input that is another recipe's."""
    for name, (folder, output) in (stage.others(call) if stage.others else {}).items():
        manifest, _ = artifacts.read_manifest(folder)
        if manifest and output in manifest["outputs"]:
            yield name, folder, manifest, output


def _context(call):
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "recipe": call.recipe.name,
        "recipe_file": call.recipe.file,
        **machine.here(call.device),
    }
