"""`--tracker tensorboard`: each epoch's figures as event files, in data/logs/tensorboard/<recipe>/<time>/."""

import importlib.util
import io
import os
import time

from pipeline import artifacts
from pipeline.stages.engine import StageError

FOLDER = "data/logs/tensorboard"
TRACKERS = ("none", "tensorboard")


def require(tracker):
    """Raise StageError where a tracker is asked for and not installed."""
    if tracker == "tensorboard" and not importlib.util.find_spec("tensorboard"):
        raise StageError("--tracker tensorboard: install it first: pip install -r requirements/tensorboard.txt")


class Tracker:
    """Takes the histories of a call's trainings as they grow, each row once; does nothing for "none"."""

    def __init__(self, call):
        self.tracker, self.written, self.say = call.tracker, {}, call.say
        self.folder = call.workspace / FOLDER / call.recipe.name / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"

    def show(self, history, name=""):
        """Add what is new in a history (dicts as `training.fit` makes them), of a network where there are several."""
        rows = history[self.written.get(name, 0) :]
        if self.tracker == "none" or not rows:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        if not self.written:
            self.say(f"train: event files for TensorBoard in {self.folder}")
        content = io.BytesIO()
        writer = RecordWriter(content)
        if name not in self.written:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for row in rows:
            values = [
                Summary.Value(
                    tag=tag.replace("train_", "train/").replace("validation_", "validation/"), simple_value=value
                )
                for tag, value in row.items()
                if tag != "epoch"
            ]
            event = Event(wall_time=time.time(), step=int(row["epoch"]), summary=Summary(value=values))
            writer.write(event.SerializeToString())
        artifacts.write(self.folder / name / "events.out.tfevents.0.pipeline", content.getvalue(), append=True)
        self.written[name] = len(history)
