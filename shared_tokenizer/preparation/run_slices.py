"""All slices of a plan -> their token shards and one summary, up to the limits on documents and tokens."""

from dataclasses import replace

from shared_tokenizer.preparation.executors import run_jobs
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.prepare_slice import (
    PrepareOptions,
    SliceJob,
    digest_slice,
    find_duplicates,
    prepare_slice,
)
from shared_tokenizer.preparation.reporter import Reporter
from shared_tokenizer.preparation.summary import Summary, refuse_too_many_bad_rows


def run_slices(jobs: list[SliceJob], config: PrepareConfig, reporter: Reporter) -> Summary:
    """Prepare slices in order and return the sum of their summaries.

    The slice that reaches `max_samples` or `max_tokens` is prepared again with the remaining limits, and is the last.
    Raises ValueError where more rows are bad than `max_bad_rows`, and where a worker ends several times.
    """
    if config.dedup:
        digests, held_out = zip(*run_jobs(digest_slice, jobs, config.executor, config.num_workers), strict=True)
        duplicates = find_duplicates(digests, held_out)
        jobs = [replace(job, duplicates=indices) for job, indices in zip(jobs, duplicates, strict=True)]
    total = Summary()
    reporter.show_progress(0, len(jobs), total)
    summaries = run_jobs(prepare_slice, jobs, config.executor, config.num_workers)
    for done, (job, summary) in enumerate(zip(jobs, summaries, strict=True), 1):
        if _reaches_limit(config, total, summary):
            total.merge(prepare_slice(replace(job, options=_remaining_options(config, total))))
            break
        total.merge(summary)
        refuse_too_many_bad_rows(total, config.max_bad_rows)
        reporter.show_progress(done, len(jobs), total)
    return total


def _reaches_limit(config: PrepareConfig, total: Summary, found: Summary) -> bool:
    documents, tokens = config.max_samples, config.max_tokens
    return (documents is not None and total.documents + found.documents >= documents) or (
        tokens is not None and total.tokens + found.tokens >= tokens
    )


def _remaining_options(config: PrepareConfig, total: Summary) -> PrepareOptions:
    documents, tokens = config.max_samples, config.max_tokens
    return replace(
        config.options,
        max_samples=None if documents is None else documents - total.documents,
        max_tokens=None if tokens is None else tokens - total.tokens,
    )
