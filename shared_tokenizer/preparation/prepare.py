"""Any text -> a sealed set of token shards, prepared by any number of workers.

Until the set is finished, `OUTPUT.partial/` holds the plan and a summary of every finished slice. An interrupted
preparation resumes from them.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.template import write_chat_template, write_stop_ids
from shared_tokenizer.data.shards import FORMAT_VERSION, MANIFEST, SPLITS, TOKENIZER, ids_dtype, parse_manifest
from shared_tokenizer.preparation.choose_tokenizer import (
    TEMPLATE_FORMAT,
    choose_chat_format,
    load_given_tokenizer,
    report_lost_text,
    template_identity,
    train_on_sample,
)
from shared_tokenizer.preparation.hold_out import with_both_splits
from shared_tokenizer.preparation.output import PreparationOutput
from shared_tokenizer.preparation.output_files import PICTURE, STATISTICS
from shared_tokenizer.preparation.plan_input import plan_input
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.prepare_slice import SliceJob, load_output_tokenizer
from shared_tokenizer.preparation.report import draw_lengths, skipped_lines, statistics
from shared_tokenizer.preparation.report_rows import refuse_rendered_sample, report_rows
from shared_tokenizer.preparation.reporter import Reporter
from shared_tokenizer.preparation.run_slices import run_slices
from shared_tokenizer.preparation.summary import Summary
from shared_tokenizer.sources.slices import Plan
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def prepare(config: PrepareConfig, reporter: Reporter) -> dict[str, Any]:
    """Create the shard set of the settings, resume an interrupted one, or keep a finished one. Return its manifest.

    The set is sealed, and a local one is verified against its seal. Raises ValueError on input that cannot be used,
    and where `output_dir` holds something else; DamagedError where a finished set no longer matches its seal.
    """
    output = PreparationOutput(config.output_dir)
    output.refuse_foreign_files()
    plan = plan_input(config, output.local_directories(), reporter)
    config = with_both_splits(config, plan, reporter)
    given = load_given_tokenizer(config, reporter)
    preparation = _Preparation(config, output, plan, given, _identity(config, plan, given), reporter)
    manifest = preparation.finished_manifest()
    if manifest is None:
        manifest = preparation.run()
    else:
        output.remove_journal()
        output.remove_empty_journal()
    output.verify()
    return manifest


def _identity(config: PrepareConfig, plan: Plan, given: Tokenizer | None) -> dict[str, Any]:
    """Return everything that the content of the set depends on."""
    trained = {name: getattr(config, name) for name in ("vocab_size", "model_type", "special_tokens", "train_size")}
    return {
        "input": [config.hub] if config.hub else config.input,
        "input_sha256": plan.fingerprint,
        "tokenizer": None if given is None else given.fingerprint,
        **(trained if given is None else {}),
        "chat_format": config.chat_format,
        # Left out where it is empty: sets that earlier versions made have none.
        **({"roles": config.roles} if config.roles else {}),
        **({"pairs": True} if plan.holds_pairs else {}),
        **({"text_format": config.text_format} if config.text_format == "rendered" else {}),
        **template_identity(config, plan),
        **asdict(config.options),
    }


@dataclass(frozen=True)
class _Preparation:
    """A preparation of which input and settings are known. `given` is None where a tokenizer is to be trained."""

    config: PrepareConfig
    output: PreparationOutput
    plan: Plan
    given: Tokenizer | None
    identity: dict[str, Any]
    reporter: Reporter

    def finished_manifest(self) -> dict[str, Any] | None:
        """Return the manifest of a finished set, None where there is none. Raises ValueError on another corpus."""
        if self.output.is_begun and not self.output.is_finished:  # a manifest may be half written
            return None
        content = self.output.read(MANIFEST)
        if content is None:
            return None
        manifest = parse_manifest(content, self.config.output_dir)
        # Sets that earlier versions made have no format of the template among their options.
        self._refuse_another({TEMPLATE_FORMAT: manifest["chat_format"]} | manifest["options"])
        return manifest

    def run(self) -> dict[str, Any]:
        """Create the set, or resume it, and return its manifest. No other process may do so at the same time."""
        with self.output.locked():
            if (manifest := self.finished_manifest()) is not None:  # another process has finished it meanwhile
                self.output.remove_journal()
                return manifest
            try:
                tokenizer, chat_format = self._start()
                summary = run_slices(self._jobs(tokenizer, chat_format), self.config, self.reporter)
                report_rows(summary, self.config, self.reporter)
                manifest = self._finish(tokenizer, chat_format, summary)
            except (ValueError, OSError):
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    if not self.output.has_finished_slices:
                        self.output.remove()
                raise
            # The set is complete: an error from here on may leave a journal, and takes nothing away.
            self.output.remove_journal()
            for line in skipped_lines(summary):
                self.reporter.log(line)
            return manifest

    def _start(self) -> tuple[Tokenizer, ChatFormat | None]:
        """Write the tokenizer and the plan, or take them from the interrupted preparation."""
        begun = self._read_begun() if self.output.is_begun else None
        if begun is not None:
            was_letters = self.config.text_format == "rendered" and "text_format" not in begun["identity"]
            self._refuse_another(begun["identity"] | ({"text_format": "rendered"} if was_letters else {}))
            begun = None if was_letters else begun  # it stopped because its texts are rendered
        tokenizer = self.given
        if tokenizer is None and begun is not None and self.output.has_finished_slices:
            tokenizer = self._load_trained_tokenizer(begun["tokenizer_fingerprint"])
        if begun is None:
            refuse_rendered_sample(self.config, self.plan, self.given)
        if tokenizer is None:
            tokenizer = train_on_sample(self.config, self.plan, self.reporter)
        elif tokenizer is self.given:
            report_lost_text(self.plan, tokenizer, self.reporter)
        chat_format = choose_chat_format(self.config, self.plan, tokenizer, self.reporter)
        plan = _to_json({"identity": self.identity, "tokenizer_fingerprint": tokenizer.fingerprint})
        if begun is not None and self.output.has_finished_slices:
            self.reporter.log(f"{self.config.output_dir}: resuming an interrupted preparation")
            self.output.write_plan(plan)
        else:
            self.output.begin(plan)
        self._write_tokenizer(tokenizer, chat_format)
        return tokenizer, chat_format

    def _jobs(self, tokenizer: Tokenizer, chat_format: ChatFormat | None) -> list[SliceJob]:
        filesystem = self.output.filesystem
        return [
            SliceJob(
                slice=part,
                output=filesystem.unstrip_protocol(self.output.output),
                journal=filesystem.unstrip_protocol(self.output.journal),
                options=self.config.options,
                tokenizer_fingerprint=tokenizer.fingerprint,
                chat_format=chat_format,
                max_bad_rows=self.config.max_bad_rows,
                text_format=self.config.text_format,
            )
            for part in self.plan.slices
        ]

    def _finish(self, tokenizer: Tokenizer, chat_format: ChatFormat | None, summary: Summary) -> dict[str, Any]:
        """Write the manifest and the statistics, and seal the set."""
        self._refuse_empty(summary)
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": ids_dtype(tokenizer.vocab_size),
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "masked": chat_format is not None,
            "chat_format": None if chat_format is None else chat_format.name,
            **({"pairs": True} if self.plan.holds_pairs else {}),
            "options": self.identity,
            "splits": {split: {**summary.splits[split], "shards": summary.shards[split]} for split in SPLITS},
        }
        self.output.sha256 |= summary.sha256
        self.output.write(STATISTICS, _to_json(statistics(summary)))
        self.output.write(PICTURE, draw_lengths(summary))
        self.output.write(MANIFEST, _to_json(manifest))
        self.output.remove_other_shards()
        self.output.seal()
        return manifest

    def _refuse_empty(self, summary: Summary) -> None:
        """Raise ValueError where a split holds no document, and remove the set."""
        if all(summary.splits.get(split) for split in SPLITS):
            return
        self.output.remove()
        config = self.config
        if not summary.documents:
            left_out = ", ".join(f"{count} {reason}" for reason, count in summary.counts.items() if count)
            first = f"; the first bad row is {summary.bad_rows[0]}" if summary.bad_rows else ""
            limit = " within max_samples and max_tokens" if config.max_samples or config.max_tokens else ""
            raise ValueError(f"{config.input_name}: found no text{limit}; left out: {left_out or 'nothing'}{first}")
        split = next(split for split in SPLITS if not summary.splits.get(split))
        raise ValueError(
            f"{split} split: found none of the {summary.documents} documents in it; give more documents, another "
            "val_fraction, or cut long files with --document_characters 10000"
        )

    def _refuse_another(self, before: dict[str, Any]) -> None:
        """Raise ValueError where the set that was begun or finished has another identity. Paths may differ."""
        for name, value in self.identity.items():
            if name != "input" and before.get(name) != value:
                raise ValueError(
                    f"{self.config.output_dir}: holds another corpus: {name} was {before.get(name)!r} and is now "
                    f"{value!r}; remove it{' and its .partial' if self.output.is_begun else ''} or choose another "
                    "output_dir"
                )

    def _read_begun(self) -> dict[str, Any]:
        """Return identity and tokenizer fingerprint of the interrupted preparation."""
        try:
            begun = json.loads(self.output.filesystem.cat_file(self.output.plan))
            return {name: begun[name] for name in ("identity", "tokenizer_fingerprint")}
        except (ValueError, TypeError, KeyError):
            raise self._damaged(self.output.plan) from None

    def _load_trained_tokenizer(self, fingerprint: str) -> Tokenizer:
        """Load the tokenizer that the interrupted preparation has trained."""
        with contextlib.suppress(OSError, ValueError):
            tokenizer = load_output_tokenizer(self.output.filesystem, self.output.output)
            if tokenizer.fingerprint == fingerprint:
                return tokenizer
        raise self._damaged(f"{self.output.output}/{TOKENIZER}")

    def _damaged(self, path: str) -> ValueError:
        directories = f"{self.output.output} and {self.output.journal}"
        return ValueError(f"{path}: damaged, so the preparation cannot resume; remove {directories} and start again")

    def _write_tokenizer(self, tokenizer: Tokenizer, chat_format: ChatFormat | None) -> None:
        with TemporaryDirectory() as temporary:
            directory = Path(temporary)
            tokenizer.save(directory)
            if chat_format is not None:
                write_chat_template(directory, chat_format, tokenizer)
                write_stop_ids(directory, chat_format, tokenizer)
            for path in sorted(directory.iterdir()):
                self.output.write(f"{TOKENIZER}/{path.name}", path.read_bytes())


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
