"""The names of the files that a preparation writes."""

import re

from shared_tokenizer.data.shards import MANIFEST, TOKENIZER
from shared_tokenizer.manifest import MANIFEST as SEAL

STATISTICS = "stats.json"
PICTURE = "documents.png"
PLAN, LOCK = "plan.json", "lock"
SHARD_FILES = re.compile(r"(train|val)-\d{5}-\d{2,}(\.ends|\.mask)?\.npy")
OUTPUT_FILES = re.compile(
    rf"{SHARD_FILES.pattern}|{MANIFEST}|{STATISTICS}|{PICTURE}|{TOKENIZER}|{SEAL}|\.{SEAL}\.\w{{8}}"
)
JOURNAL_FILES = re.compile(rf"({PLAN}|slice-.*\.json)(\.tmp)?")
