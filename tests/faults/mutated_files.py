"""Files of every format, damaged at random and read in this process: an answer, or an error that names the file."""

import contextlib
import functools
import gzip
import importlib
import json
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from jaxlm.commands.runs import list_runs
from jaxlm.common.artifact.safetensors import TensorFile
from jaxlm.common.command_line import USER_ERRORS
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import read_run_config
from shared_tokenizer.data.batches import open_examples
from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.load import find_chat_format, find_tokenizer, load_tokenizer
from shared_tokenizer.manifest import MANIFEST, verify_manifest, write_manifest
from shared_tokenizer.sources.documents import read_file
from shared_tokenizer.sources.files import find_files
from tests.faults.mutators import mutate
from tests.faults.trial import Kind, Outcome
from tests.faults.workplace import Workplace

LONGEST_S = 2
PER_TRIAL = 400
# More than that for one small file is a bomb.
MOST_MEMORY = 3 << 30


@dataclass(frozen=True)
class Format:
    """A kind of file: whole examples, and the functions of ours that read it."""

    name: str
    file: str
    """Name of the file that is damaged."""
    examples: Callable[[Workplace], list[bytes]]
    read: Callable[[Path], Any]
    """Read the file, or the directory that it lies in, to the end."""
    around: Callable[[Workplace, Path], Any] = lambda workplace, folder: None
    """Write the other files of its directory."""


class TooSlow(BaseException):
    """The time for one file is over; no reader may catch it."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TooSlow after some seconds of work, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    # Seconds of processor time, for the machine may be busy; and again and again, for a callback may swallow it.
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def bounded_memory(most: int = MOST_MEMORY) -> Iterator[None]:
    """Let this process have so many bytes more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Seal directories without waiting for the disk: what is read was written a moment before."""
    before = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = before


def read_one(kind: Format, path: Path, outcome: Outcome, where: str) -> None:
    """Read one file, and note everything but an answer or an error that names it."""
    outcome.tried += 1
    try:
        with alarm(LONGEST_S):
            kind.read(path)
    except TooSlow:
        outcome.fail("hung", f"{where}: more than {LONGEST_S} s")
    except MemoryError as error:
        outcome.fail("crashed", f"{where}: MemoryError {error}")
    except (ValueError, OSError) as error:
        if path.name not in str(error) and path.parent.name not in str(error):
            outcome.fail(
                "untidy", f"{where}: names no file: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
    except USER_ERRORS as error:
        outcome.fail("untidy", f"{where}: {type(error).__name__}: {error}")
    except Exception as error:
        frame = _last_frame(error)
        outcome.fail("crashed", f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]} at {frame}")


def _last_frame(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def read_mutated(kind: Format, workplace: Workplace, folder: Path, rng: np.random.Generator) -> Outcome:
    """Damage the examples of a format in many ways and read them."""
    outcome = Outcome()
    directory = folder / "directory"
    directory.mkdir()
    kind.around(workplace, directory)
    path, examples = directory / kind.file, kind.examples(workplace)
    with bounded_memory(), unsynced():
        for number in range(PER_TRIAL):
            content, other = (examples[int(rng.integers(len(examples)))] for _ in range(2))
            path.write_bytes(mutate(content, other, rng))
            before = len(outcome.failures)
            read_one(kind, path, outcome, f"{kind.name}, file {number} of the trial")
            if len(outcome.failures) >= 3:
                break
            if len(outcome.failures) > before:
                shutil.copy(path, folder / f"failed-{number}")
    return outcome


def read_text(path: Path) -> int:
    """Read a source as a preparation does."""
    documents = 0
    for file in find_files([str(path)]).files:
        for _ in read_file(file):
            documents += 1
    return documents


def read_tokenizer(path: Path) -> None:
    """Open a tokenizer, encode and decode with it."""
    tokenizer = load_tokenizer(path.parent)
    ids = tokenizer.encode("def f1(x):\n    return aé 漢 <s> </s>\t")
    tokenizer.decode(ids)
    tokenizer.decode(range(min(tokenizer.vocab_size, 400)))
    find_chat_format(path.parent, tokenizer)


def read_tensors(path: Path) -> None:
    """Read every tensor of a safetensors file."""
    file = TensorFile(path)
    for name in file:
        file.stored(name)
        file[name]


def read_model(path: Path) -> None:
    """Open a model, and read its tensors and its tokenizer."""
    place = path if path.suffix == ".gguf" else path.parent
    artifact = open_model(place)
    for name in artifact.tensors:
        artifact.tensors[name]
    if find_tokenizer(place, artifact.tokenizer_metadata) is not None:
        return


def read_sealed_model(path: Path) -> None:
    """Open a model whose damaged file was sealed."""
    write_manifest(path.parent)
    read_model(path)


def read_shards(path: Path) -> None:
    """Open both splits of a shard set, and read their examples."""
    for split in ("train", "val"):
        TokenShards.open(path.parent, split)
        examples = open_examples(path.parent, split, 16)
        for index in (0, len(examples) - 1):
            examples[index]


def read_log(path: Path) -> None:
    """Read metrics.jsonl as a resumed run does, and as the list of runs."""
    list_runs(path.parent)
    read_metrics(path)


def read_seal(path: Path) -> None:
    """Verify a sealed directory of which the manifest is damaged."""
    verify_manifest(path.parent)


def read_adapters(path: Path) -> None:
    """Add sealed adapters to a model."""
    from mlxlm.adapters.adapter_directory import load_adapters

    write_manifest(path.parent)
    load_adapters(_base_model((path.parent.parent / "base").resolve()), path.parent)
    _base_model.cache_clear()  # it has adapters now


@functools.lru_cache(maxsize=1)
def _base_model(base: Path) -> Any:
    from mlxlm.load import load_model

    return load_model(base, verify=False)[0]


def _adapters_around(workplace: Workplace, folder: Path) -> None:
    importlib.import_module("mlxlm.load")  # before its seconds count
    shutil.copytree(workplace.path / "adapters", folder, dirs_exist_ok=True)
    (folder.parent / "base").symlink_to(workplace.path / "packed")


_ROWS = [{"text": "def f(x):\n    return 1"}, {"text": "é漢", "id": 5}, {"text": "", "meta": {"a": [1, 2.5, None]}}]
_CHATS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}] * 3},
]
_PAIRS = [{"instruction": "a", "input": "", "output": "b"}, {"prompt": "a", "completion": "b"}]


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _json_lines(workplace: Workplace) -> list[bytes]:
    return [_lines(_ROWS * 4), _lines(_CHATS * 3), _lines(_PAIRS[:1] * 5), _lines(_PAIRS[1:] * 5)]


def _json_files(workplace: Workplace) -> list[bytes]:
    return [
        json.dumps(_ROWS * 4).encode(),
        json.dumps(_CHATS, indent=2).encode(),
        json.dumps({"data": _ROWS}).encode(),
        json.dumps(_ROWS[0], indent=1).encode(),
    ]


def _tables(delimiter: str) -> list[bytes]:
    rows = [["text", "id"], ["def f(x): 1", "1"], ['"quoted\nlines"', "2"], ["é漢", "3"]]
    return ["\r\n".join(delimiter.join(row) for row in rows).encode(), b"text\na\nb\nc\n"]


def _parquets(workplace: Workplace) -> list[bytes]:
    found = []
    for rows, compression in ((_ROWS[:2] * 5, "snappy"), (_CHATS * 2, "zstd"), (_PAIRS[:1] * 4, "none")):
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, compression=compression)
        found.append(sink.getvalue().to_pybytes())
    return found


def _gzipped(workplace: Workplace) -> list[bytes]:
    return [gzip.compress(content) for content in _json_lines(workplace)]


def _zstandard(workplace: Workplace) -> list[bytes]:
    return [_compressed(content) for content in _json_lines(workplace)]


def _compressed(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def _files_of(*names: str) -> Callable[[Workplace], list[bytes]]:
    return lambda workplace: [(workplace.path / name).read_bytes() for name in names]


def _copy_around(source: str, *without: str) -> Callable[[Workplace, Path], Any]:
    def around(workplace: Workplace, folder: Path) -> None:
        shutil.copytree(workplace.path / source, folder, dirs_exist_ok=True)
        for name in without:
            (folder / name).unlink(missing_ok=True)

    return around


def _vocabulary(workplace: Workplace) -> list[bytes]:
    words = ["<s>", "</s>", "a", "b", "ab", "c", "\u0120", "def"]
    return [json.dumps({word: number for number, word in enumerate(words)}).encode()]


def _merges_around(workplace: Workplace, folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", "utf-8")


_SHARDS_LEFT_OUT = (MANIFEST, "documents.png", "stats.json")
FORMATS = (
    Format("jsonl", "rows.jsonl", _json_lines, read_text),
    Format("json", "rows.json", _json_files, read_text),
    Format("csv", "rows.csv", lambda _: _tables(","), read_text),
    Format("tsv", "rows.tsv", lambda _: _tables("\t"), read_text),
    Format(
        "text",
        "text.txt",
        lambda _: ["def f(x): é漢\r\n".encode() * 9, b"a\n\nb\n", "mit ä".encode("utf-16")],
        read_text,
    ),
    Format("parquet", "rows.parquet", _parquets, read_text),
    Format("gzip", "rows.jsonl.gz", _gzipped, read_text),
    Format("zstd", "rows.jsonl.zst", _zstandard, read_text),
    Format("tokenizer.model", "tokenizer.model", _files_of("tokenizer/tokenizer.model"), read_tokenizer),
    Format("tokenizer.json", "tokenizer.json", _files_of("tokenizer/tokenizer.json"), read_tokenizer),
    Format("vocab.json", "vocab.json", _vocabulary, read_tokenizer, _merges_around),
    Format(
        "tokenizer_config.json",
        "tokenizer_config.json",
        _files_of("tokenizer/tokenizer_config.json"),
        read_tokenizer,
        _copy_around("tokenizer", MANIFEST),
    ),
    Format("safetensors", "model.safetensors", _files_of("packed/model.safetensors"), read_tensors),
    Format(
        "config.json of an artifact",
        "config.json",
        _files_of("packed/config.json"),
        read_sealed_model,
        _copy_around("packed"),
    ),
    Format(
        "generation_config.json",
        "generation_config.json",
        _files_of("packed/generation_config.json"),
        read_sealed_model,
        _copy_around("packed"),
    ),
    Format(
        "config.json of transformers",
        "config.json",
        _files_of("finished/convert-dequantized/output/config.json"),
        read_model,
        _copy_around("finished/convert-dequantized/output", MANIFEST),
    ),
    Format(
        "config.json of MLX",
        "config.json",
        _files_of("finished/convert-mlx/output/config.json"),
        read_sealed_model,
        _copy_around("finished/convert-mlx/output"),
    ),
    Format("GGUF", "model.gguf", lambda workplace: [_gguf(workplace)], read_model),
    Format(
        "manifest.json of shards",
        "manifest.json",
        _files_of("data/manifest.json"),
        read_shards,
        _copy_around("data", *_SHARDS_LEFT_OUT),
    ),
    Format(
        "npy of shards",
        "train-00000-00.npy",
        _files_of("data/train-00000-00.npy"),
        read_shards,
        _copy_around("data", *_SHARDS_LEFT_OUT),
    ),
    Format(
        "ends of shards",
        "train-00000-00.ends.npy",
        _files_of("data/train-00000-00.ends.npy"),
        read_shards,
        _copy_around("data", *_SHARDS_LEFT_OUT),
    ),
    Format(
        "metrics.jsonl",
        "metrics.jsonl",
        _files_of("finished/train-ternary/output/metrics.jsonl"),
        read_log,
        lambda workplace, folder: shutil.copy(workplace.finished("train-ternary") / "config.yaml", folder),
    ),
    Format(
        "config.yaml",
        "config.yaml",
        _files_of("finished/train-ternary/output/config.yaml"),
        lambda path: read_run_config(path.parent),
    ),
    Format(MANIFEST, MANIFEST, _files_of(f"tokenizer/{MANIFEST}"), read_seal, _copy_around("tokenizer")),
    Format(
        "adapter_config.json",
        "adapter_config.json",
        _files_of("adapters/adapter_config.json"),
        read_adapters,
        _adapters_around,
    ),
    Format(
        "adapters.safetensors",
        "adapters.safetensors",
        _files_of("adapters/adapters.safetensors"),
        read_adapters,
        _adapters_around,
    ),
)


# Read in less than a millisecond, so that most files are of these.
_QUICK = {"jsonl", "json", "csv", "tsv", "text", "parquet", "gzip", "zstd", "vocab.json", "safetensors", MANIFEST}


def _gguf(workplace: Workplace) -> bytes:
    """Return the header of a GGUF file and the beginning of its tensors, for the rest is only weights."""
    return (workplace.finished("convert-gguf") / "model.gguf").read_bytes()


def _trial(kind: Format):
    return lambda workplace, folder, rng: read_mutated(kind, workplace, folder, rng)


KINDS = [Kind(f"mutated {kind.name}", _trial(kind), 0.3 if kind.name in _QUICK else 0.1) for kind in FORMATS]
