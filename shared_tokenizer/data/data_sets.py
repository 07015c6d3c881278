"""One or several shard sets of one tokenizer, opened for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shared_tokenizer.chat.template import read_chat_template
from shared_tokenizer.data.batches import Packing, evaluation_batches, open_examples
from shared_tokenizer.data.examples import Example, Examples
from shared_tokenizer.data.pairs import Pairs
from shared_tokenizer.data.shards import MANIFEST, TOKENIZER, Split, TokenShards, read_manifest
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import verify_manifest
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataSets:
    """The examples of one or several shard sets of one tokenizer, and that tokenizer."""

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
        verify: bool = False,
        pairs: bool = False,
    ) -> "DataSets":
        """Open both splits of every set. `verify` first compares every file with its sha256.

        With `pairs` an example is a pair of rows, and the pairs of all sets are counted one after another, those of the
        train splits first. Raises ValueError where a set is damaged (DamagedError with `verify`), holds nothing to
        learn, belongs to another tokenizer than the first, or holds no pairs where they are expected, or pairs where
        they are not.
        """
        tokenizer_dir, tokenizer = _common_tokenizer(directories)
        for directory in directories:
            _check_kind(Path(directory), pairs)
        if verify:
            for directory in directories:
                verify_manifest(Path(directory))

        def open_pairs(split: Split, first: int) -> tuple[Pairs, ...]:
            found: list[Pairs] = []
            for directory in directories:
                shards, name = TokenShards.open(directory, split), f"{directory} ({split})"
                found.append(Pairs(shards, seq_len, name, first=first + sum(map(len, found))))
            return tuple(found)

        if pairs:
            train = open_pairs("train", 0)
            val = open_pairs("val", sum(map(len, train)))
            return cls(tuple(map(Path, directories)), train, val, tokenizer, tokenizer_dir)

        def open_split(split: Split) -> tuple[Examples, ...]:
            return tuple(
                open_examples(directory, split, seq_len, packing=packing, document_mask=document_mask)
                for directory in directories
            )

        return cls(tuple(map(Path, directories)), open_split("train"), open_split("val"), tokenizer, tokenizer_dir)

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of all manifest.json, as hex. A run resumes only with the same data."""
        digest = sha256()
        for directory in self.directories:
            digest.update((directory / MANIFEST).read_bytes())
        return digest.hexdigest()

    @property
    def train_examples(self) -> int:
        """Number of training examples of all sets: one epoch."""
        return sum(map(len, self.train))

    def packing_reports(self) -> list[str]:
        """Return one line of statistics per split that is packed or holds pairs."""
        return [
            f"{directory} ({split}): {report}"
            for split, sets in (("train", self.train), ("val", self.val))
            for directory, examples in zip(self.directories, sets, strict=True)
            if (report := getattr(examples, "report", None)) is not None
        ]

    def evaluation_batches(self, batch_size: int, max_batches: int) -> list[Example]:
        """Return the first batches `[batch_size, L]` of the validation splits, in order."""
        return evaluation_batches(self.val, batch_size, max_batches)


def _check_kind(directory: Path, pairs: bool) -> None:
    """Raise ValueError where a set holds pairs of answers and is not opened for them, and the other way round."""
    if read_manifest(directory).get("pairs", False) == pairs:
        return
    if pairs:
        raise ValueError(
            f"{directory}: found texts or chats, expected pairs of answers; prepare rows with the columns chosen and "
            "rejected, or train on this set with --objective next_token"
        )
    raise ValueError(
        f"{directory}: found pairs of answers, expected texts or chats; train on them with --objective orpo, or "
        "prepare the chosen answers alone with --text_column chosen"
    )


def _common_tokenizer(directories: Sequence[Path]) -> tuple[Path, Tokenizer]:
    """Return the tokenizer of all sets and its directory: of the first set with a chat template, else of the first."""
    first = read_manifest(directories[0])["tokenizer_fingerprint"]
    for directory in directories:
        if (found := read_manifest(directory)["tokenizer_fingerprint"]) != first:
            raise ValueError(
                f"{directory}: shards were made with tokenizer {found[:12]}..., those of {directories[0]} with "
                f"{first[:12]}...; prepare one of them with the tokenizer of the other"
            )
    paths = [Path(directory) / TOKENIZER for directory in directories]
    path = next((path for path in paths if read_chat_template(path) is not None), paths[0])
    tokenizer = load_tokenizer(path)
    if tokenizer.fingerprint != first:
        raise ValueError(
            f"{path.parent}: shards were made with tokenizer {first[:12]}..., found "
            f"{tokenizer.fingerprint[:12]}... in {TOKENIZER}/; prepare the data again"
        )
    return path, tokenizer
