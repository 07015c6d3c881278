"""TensorBoard: event files in the run directory, for `tensorboard --logdir`."""

import struct
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from tensorboard.compat.proto.types_pb2 import DT_STRING  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

from jaxlm.common.trackers.tracker import TrackedRun

_FILES = "events.out.tfevents.*"
# Seconds after which a reader that watches the run sees a line.
_FLUSH_SECONDS = 5


class TensorBoard:
    """Event files, written anew whenever the run is opened: they hold what metrics.jsonl holds, and no step twice."""

    sent = 0

    def __init__(self, run: TrackedRun):
        for before in run.directory.glob(_FILES):
            before.unlink()
        self._writer = EventFileWriter(str(run.directory), flush_secs=_FLUSH_SECONDS)
        # A reader that has the files of before open drops what it read of them.
        self._writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        self.text(0, "config", yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, *found)

    def text(self, step: int, name: str, text: str) -> None:
        # TensorBoard reads markdown; an indented block of it is shown as it is.
        content = textwrap.indent(text, "    ", lambda line: True).encode("utf-8", "replace")
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=shape)
        self._add(step, Summary.Value(tag=name, metadata=metadata, tensor=tensor))

    def picture(self, step: int, name: str, path: Path) -> None:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of the first chunk of a PNG
        image = Summary.Image(encoded_image_string=content, width=width, height=height, colorspace=4)
        self._add(step, Summary.Value(tag=name, image=image))

    def close(self, *, failed: bool) -> None:
        self._writer.close()

    def _add(self, step: int, *values: Summary.Value) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))


def open_tracker(run: TrackedRun) -> TensorBoard:
    """Return the record of a run in TensorBoard's files."""
    return TensorBoard(run)
