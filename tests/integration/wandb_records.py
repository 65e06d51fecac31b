"""Reads an offline W&B run back: LevelDB's log format around the records of the package's own protobuf definitions."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER = struct.Struct("<4sHB")  # of the file
CHUNK = struct.Struct("<IHB")  # of a part of a record: checksum, length, kind
BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Record]:
    """The records of a run-<id>.wandb file, in order."""
    content = path.read_bytes()
    assert HEADER.unpack_from(content) == (b":W&B", 0xBEE1, 0)
    position, parts = HEADER.size, b""
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < CHUNK.size:  # no header fits: the block ends in zeros
            position += left
            continue
        checksum, length, kind = CHUNK.unpack_from(content, position)
        part = content[position + CHUNK.size : position + CHUNK.size + length]
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind])))
        position += CHUNK.size + length
        assert bool(parts) == (kind in (MIDDLE, LAST))
        parts += part
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


class OfflineRun:
    """What the web page would show of an offline run after `wandb sync`.

    Attributes:
        run: name, group, tags, project.
        config, summary: as W&B would hold them, by key; of nested summary keys the parts are joined by a dot.
        history: the rows.
        step_metrics: metric or pattern of metrics -> the metric on its x axis.
        exit_code: None while the run is open.
    """

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("run-*.wandb")
        self.folder = folder
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.step_metrics: dict[str, str] = {}
        self.exit_code: int | None = None
        for record in read_records(file):
            self._take(record)

    def _take(self, record: Record) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "summary":
            for item in record.summary.update:
                self.summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "history":
            row = record.history.item
            self.history.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row})
        elif kind == "metric":
            self.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            self.exit_code = record.exit.exit_code


def records(run: Path) -> list[OfflineRun]:
    """The offline W&B runs of a run folder."""
    return [OfflineRun(path) for path in sorted((run / "logs" / "wandb").glob("offline-run-*"))]
