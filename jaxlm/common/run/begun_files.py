"""Files that a start of a run has begun and left behind: a directory that holds nothing else is as good as empty."""

import re
import shutil
from pathlib import Path

from jaxlm.common.run.identity import IDENTITY
from shared_tokenizer.preparation.output_files import OUTPUT_FILES

# A directory may hold these before the settings file is there.
_FIRST = ("run.lock", IDENTITY)
# Written before the settings file by fine-tuning, which has its identity by then.
_DATA = re.compile(r"data(\.partial)?|\.data\.[a-z0-9_]{8}")
# Temporary files and directories of atomic writes (`.NAME.` and eight random characters), and results not yet placed.
_NAMES = (
    r"config\.yaml|finetune\.yaml|identity\.json|metrics\.jsonl|samples\.txt|loss\.png|reward\.png|"
    r"tokenizer|artifact|adapters|reference"
)
_TEMPORARY = re.compile(rf"\.({_NAMES})(\.new)?\.[a-z0-9_]{{8}}|\.removed-\d+|(artifact|adapters)\.new")


def holds_only_begun_files(directory: Path) -> bool:
    """Return True if everything in a directory was begun by a trainer that ended before its first step."""
    has_identity = (directory / IDENTITY).is_file()
    return all(
        path.name in _FIRST or _TEMPORARY.fullmatch(path.name) or (has_identity and _is_begun_data(path))
        for path in directory.iterdir()
    )


def remove_leftovers(directory: Path, *, keep_data: bool) -> None:
    """Remove the temporary files of writes that a kill interrupted, and with `keep_data` False begun data too.

    The caller holds the lock of the run.
    """
    for path in list(directory.iterdir()):
        if _TEMPORARY.fullmatch(path.name) or (not keep_data and _is_begun_data(path)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_begun_data(path: Path) -> bool:
    """Return True if a path is data that fine-tuning has begun to prepare, and not a folder of texts of that name."""
    if not _DATA.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    return path.name != "data" or all(OUTPUT_FILES.fullmatch(inner.name) for inner in path.iterdir())
