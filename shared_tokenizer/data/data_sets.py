"""One or several shard sets, ready to be trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shared_tokenizer.chat.template import read_chat_template
from shared_tokenizer.data.batches import Packing, evaluation_batches, open_examples
from shared_tokenizer.data.examples import Example, Examples, PackedDocuments
from shared_tokenizer.data.shards import MANIFEST, TOKENIZER, Split, read_manifest
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataSets:
    """One or several shard sets of one tokenizer, ready to be drawn from."""

    directories: tuple[Path, ...]
    train: tuple[Examples, ...]
    val: tuple[Examples, ...]
    tokenizer: Tokenizer
    tokenizer_dir: Path

    @classmethod
    def open(
        cls,
        directories: Sequence[Path],
        seq_len: int,
        *,
        packing: Packing = "auto",
        document_mask: bool = True,
        verify: Callable[[Path], None] = lambda directory: None,
    ) -> "DataSets":
        """Open both splits of every set, after `verify` has found each directory whole.

        Raises ValueError where a set is damaged, holds nothing to learn or belongs to another tokenizer.
        """
        tokenizer_dir, tokenizer = _common_tokenizer(directories)
        for directory in directories:
            verify(Path(directory))

        def open_split(split: Split) -> tuple[Examples, ...]:
            return tuple(
                open_examples(directory, split, seq_len, packing=packing, document_mask=document_mask)
                for directory in directories
            )

        return cls(tuple(map(Path, directories)), open_split("train"), open_split("val"), tokenizer, tokenizer_dir)

    @property
    def fingerprint(self) -> str:
        """sha256 of what the sets say they hold: a run goes on only with the data it began with."""
        digest = sha256()
        for directory in self.directories:
            digest.update((directory / MANIFEST).read_bytes())
        return digest.hexdigest()

    def packing_reports(self) -> list[str]:
        """A line for each packed split."""
        return [
            f"{directory} ({split}): {examples.report}"
            for split, sets in (("train", self.train), ("val", self.val))
            for directory, examples in zip(self.directories, sets, strict=True)
            if isinstance(examples, PackedDocuments)
        ]

    def evaluation_batches(self, batch_size: int, max_batches: int) -> list[Example]:
        """The first held-out batches, in order."""
        return evaluation_batches(self.val, batch_size, max_batches)


def _common_tokenizer(directories: Sequence[Path]) -> tuple[Path, Tokenizer]:
    """The tokenizer of all sets, from the first that has a chat template beside it."""
    first = read_manifest(directories[0])["tokenizer_fingerprint"]
    for directory in directories:
        if (found := read_manifest(directory)["tokenizer_fingerprint"]) != first:
            raise ValueError(
                f"{directory}: shards were made with tokenizer {found[:12]}..., those of {directories[0]} with "
                f"{first[:12]}...; prepare one with the other's tokenizer"
            )
    places = [Path(directory) / TOKENIZER for directory in directories]
    place = next((place for place in places if read_chat_template(place) is not None), places[0])
    tokenizer = load_tokenizer(place)
    if tokenizer.fingerprint != first:
        raise ValueError(
            f"{place.parent}: shards were made with tokenizer {first[:12]}..., found "
            f"{tokenizer.fingerprint[:12]}... in {TOKENIZER}/; prepare the data again"
        )
    return place, tokenizer
