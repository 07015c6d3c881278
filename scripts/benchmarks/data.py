"""The cost of data: preparation against the bare tokenizer library, its memory, and batches against a constant one."""

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import sentencepiece
import tokenizers
from benchmarks.measuring.training_step import fastest_model

from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.training.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.training.train_step import init_state, make_train_step
from shared_tokenizer.data.batches import Batch, BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.shards import TOKENIZER
from shared_tokenizer.sources.documents import Document, cut_document, read_documents
from shared_tokenizer.tokenizers.tokenizer_files import DEFINITION_FILE, MODEL_FILE

BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DataBenchmark:
    """The text, the model and the number of turns."""

    data_dir: str = "data/stdlib"
    """Token shards: their tokenizer is timed, and the batches of training come from them."""
    input: str = "stdlib"
    """Text to prepare, repeated to the sizes that are measured."""
    megabytes: int = 200
    """Size of the corpus that preparation is timed on."""
    memory_megabytes: tuple[int, int] = (10, 200)
    """Sizes of the corpora whose preparation's peak memory is compared."""
    num_workers: int = 2
    """Processes."""
    preset: str = "ternary-tiny"
    """Model whose training step the batches are compared with."""
    batch_size: int = 4
    """Sequences per step."""
    seq_len: int = 128
    """Tokens per sequence."""
    steps: int = 100
    """Steps in each of the blocks that take turns."""


def benchmark(settings: DataBenchmark) -> None:
    """Compare preparation with the bare tokenizer library, and training batches with a constant one."""
    with tempfile.TemporaryDirectory() as directory:
        _preparation(settings, Path(directory))
        _memory(settings, Path(directory))
    _batches(settings)


def _write_corpus(path: Path, source: str, megabytes: int) -> None:
    """Write a row per 4,000 characters, about; later rounds differ from the first in each row."""
    wanted, written, turn = megabytes * 10**6, 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < wanted:
            for document in _short_documents(source):
                written += file.write(json.dumps({"text": f"{turn} {document.text}"}, ensure_ascii=False) + "\n")
                if written >= wanted:
                    return
            turn += 1


def _short_documents(source: str) -> Iterator[Document]:
    for document in read_documents([source]):
        yield from cut_document(document, 4000)


def _preparation(settings: DataBenchmark, directory: Path) -> None:
    corpus = directory / "corpus.jsonl"
    _write_corpus(corpus, settings.input, settings.megabytes)
    bare, ours = [], []
    for turn in range(3):
        bare.append(_bare_seconds(corpus, settings))
        start = time.perf_counter()
        _prepare(corpus, directory / f"shards-{turn}", settings, settings.num_workers)
        ours.append(time.perf_counter() - start)
    console = make_console()
    size = corpus.stat().st_size / 1e6
    bare_median, our_median = statistics.median(bare), statistics.median(ours)
    console.print(f"{size:.0f} MB, {settings.num_workers} processes, medians of 3 turns")
    console.print(f"tokenizer library alone: {size / bare_median:.1f} MB/s")
    console.print(f"preparation, from start to sealed shards: {size / our_median:.1f} MB/s")
    console.print(f"preparation / library = {bare_median / our_median:.2f}")


def _prepare(corpus: Path, output: Path, settings: DataBenchmark, num_workers: int) -> None:
    command = [sys.executable, "scripts/prepare_data.py", "--input", str(corpus), "--output_dir", str(output)]
    command += ["--tokenizer", f"{settings.data_dir}/{TOKENIZER}", "--num_workers", str(num_workers)]
    subprocess.run(command, check=True, capture_output=True)


def _bare_seconds(corpus: Path, settings: DataBenchmark) -> float:
    """Return the time of the slowest process to encode its share of the texts, which it holds in memory."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(settings.num_workers, context) as pool:
        barrier = manager.Barrier(settings.num_workers)
        jobs = [
            pool.submit(_encode_share, corpus, settings.data_dir, index, settings.num_workers, barrier)
            for index in range(settings.num_workers)
        ]
        return max(job.result() for job in jobs)


def _encode_share(corpus: Path, data_dir: str, index: int, count: int, barrier) -> float:
    encode = _library_encode(Path(data_dir) / TOKENIZER)
    with corpus.open(encoding="utf-8") as file:
        batches = list(_batched(json.loads(line)["text"] for i, line in enumerate(file) if i % count == index))
    barrier.wait()
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    return time.perf_counter() - start


def _library_encode(directory: Path) -> Callable[[list[str]], object]:
    """Return the library's own call for a batch of texts, on one thread."""
    if (directory / MODEL_FILE).is_file():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / MODEL_FILE))
        return lambda texts: processor.encode(texts, num_threads=1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    library = tokenizers.Tokenizer.from_file(str(directory / DEFINITION_FILE))
    return lambda texts: [found.ids for found in library.encode_batch_fast(texts, add_special_tokens=False)]


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _memory(settings: DataBenchmark, directory: Path) -> None:
    peaks = []
    for megabytes in settings.memory_megabytes:
        corpus = directory / f"{megabytes}.jsonl"
        _write_corpus(corpus, settings.input, megabytes)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:  # a process of its own, whose children are the one measured
            peaks.append(pool.submit(_peak_of_preparing, corpus, directory / str(megabytes), settings).result())
    console = make_console()
    for megabytes, peak in zip(settings.memory_megabytes, peaks, strict=True):
        console.print(f"peak memory of preparing {megabytes} MB: {peak / 1e6:.0f} MB")
    console.print(f"large / small = {peaks[1] / peaks[0]:.2f}")


def _peak_of_preparing(corpus: Path, output: Path, settings: DataBenchmark) -> int:
    _prepare(corpus, output, settings, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _batches(settings: DataBenchmark) -> None:
    sets = DataSets.open([Path(settings.data_dir)], settings.seq_len)
    config = replace(preset(settings.preset), vocab_size=sets.tokenizer.vocab_size)
    recipe = OptimizerConfig()
    optimizer = make_optimizer(recipe, 10**6)
    model = fastest_model(config)
    state = jax.jit(lambda: init_state(model, optimizer, 0))()
    step = make_train_step(model, optimizer, learning_rate_schedule(recipe, 10**6), 1)
    pipeline = iter(training_batches(sets.train, BatchOrder(settings.batch_size, 0)))
    constant = next(pipeline)
    compiled = step.lower(state, constant).compile()

    def block(batches: Iterator[Batch]) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(settings.steps):
            state, metrics = compiled(state, next(batches))
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    def repeated() -> Iterator[Batch]:
        while True:
            yield constant

    block(repeated())
    ratios = [block(pipeline) / block(repeated()) for _ in range(9)]
    make_console().print(
        f"training step with the input pipeline / with a constant batch = {statistics.median(ratios):.3f} "
        f"(median of 9 pairs of {settings.steps} steps, {min(ratios):.3f} to {max(ratios):.3f})"
    )
