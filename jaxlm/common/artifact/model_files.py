"""The files of a model directory, ours or that of transformers: config.json, weights, tokenizer files.

The weights are one safetensors file, or several with an index.
"""

import contextlib
import json
import operator
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import StoredTensor
from jaxlm.common.artifact.safetensors import TensorFile, file_bytes, write_tensors
from shared_tokenizer.load import verify_tokenizer
from shared_tokenizer.manifest import named_errors

MAX_FILE_BYTES = 5 * 10**9
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    GENERATION_CONFIG,
)


class ModelTensors(Mapping[str, np.ndarray]):
    """The tensors of a model directory by name, from all of its files; memory-mapped and read on use.

    Raises ValueError on construction where two files hold the same tensor.
    """

    def __init__(self, directory: Path, files: Sequence[TensorFile]):
        self._files: dict[str, TensorFile] = {}
        for file in files:
            for name in file:
                if name in self._files:
                    raise ValueError(f"{directory}: tensor {name} is in two files; save or download the model again")
                self._files[name] = file

    def stored(self) -> dict[str, StoredTensor]:
        """Return the shape and dtype of every tensor, without reading it."""
        return {name: file.stored(name) for name, file in self._files.items()}

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor as it is on disk, memory-mapped: bfloat16 is uint16 bits."""
        return self._files[name].raw(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return some rows of a tensor; the others are not read."""
        return self._files[name].rows(name, start, stop)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@contextlib.contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Let a ValueError on the content of a model name the directory or file, where it does not yet."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def find_config(directory: Path) -> Path:
    """Return the path of the config.json of a model directory. Raises ValueError where there is none."""
    if not (directory / CONFIG).is_file():
        inside = directory / "artifact"
        hint = f"; its artifact is {inside}" if (inside / CONFIG).is_file() else ""
        raise ValueError(f"{directory}: found no {CONFIG}, expected a model directory{hint}")
    return directory / CONFIG


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of the config.json of a model directory. Raises ValueError where it is not a JSON object."""
    return read_json_object(find_config(directory))


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError where the file holds anything else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {str(error)[:200]}; download or save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a JSON {type(content).__name__}, expected an object")
    return content


def open_tensors(directory: Path, log: Callable[[str], None] = lambda line: None) -> ModelTensors:
    """Open the tensors of a model directory: those of model.safetensors, else of the files that its index names.

    With both, model.safetensors is read, as in transformers; `log` receives a line on every file of weights that is
    not. Raises ValueError where a file is missing, damaged or a pickle, or where the index is wrong.
    """
    if (directory / WEIGHTS).is_file():
        _log_unread(directory, {WEIGHTS}, WEIGHTS, log)
        return ModelTensors(directory, [TensorFile(directory / WEIGHTS)])
    if not (directory / INDEX).is_file():
        raise ValueError(_no_weights(directory))
    index = directory / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: expected JSON with a 'weight_map' of tensor names to files")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard:
            raise ValueError(f"{index}: file name {shard!r} leads outside the directory")
        if Path(shard).suffix in PICKLES:
            raise ValueError(pickle_error(directory / shard))
        if not shard.endswith(".safetensors"):
            raise ValueError(f"{index}: names the file {shard!r}, expected .safetensors")
        if not (directory / shard).is_file():
            raise ValueError(f"{directory / shard}: missing, but named in {INDEX}; copy or download it again")
    _log_unread(directory, set(shards), INDEX, log)
    files = {shard: TensorFile(directory / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in files[shard]:
            raise ValueError(f"{index}: tensor {name} is not in {shard}, which it names")
    return ModelTensors(directory, list(files.values()))


def _log_unread(directory: Path, read: Collection[str], source: str, log: Callable[[str], None]) -> None:
    """Say which files of weights are left out, as transformers leaves them out."""
    others = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in read)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        log(f"{directory}: read the weights of {source}, as transformers does; not read: {others[0]}{more}")


def _no_weights(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    if pickles:
        return pickle_error(directory / pickles[0])
    return f"{directory}: found neither {WEIGHTS} nor {INDEX}, expected one of them; download or save the model again"


def pickle_error(path: Path) -> str:
    """Return the error message for a pickle file."""
    return (
        f"{path}: found a pickle, which can run any program when it is read, expected {WEIGHTS}; "
        "where you trust the file, save the model as safetensors"
    )


def check_layers(directory: Path, found: Mapping[str, StoredTensor], config: ModelConfig) -> None:
    """Raise ValueError where a config has more layers than there are tensors.

    This bounds the time that a hostile config can take: the parameter table grows with num_layers.
    """
    if config.num_layers > len(found):
        raise ValueError(f"{directory}: found {len(found)} tensors, too few for num_layers {config.num_layers}")


def check_tensors(
    directory: Path,
    found: Mapping[str, StoredTensor],
    expected: Sequence[StoredTensor],
    fits: Callable[[StoredTensor, StoredTensor], bool] = operator.eq,
) -> None:
    """Raise ValueError naming a tensor that is missing, unexpected or of another shape or dtype.

    `fits(found, expected)` returns True if a tensor can stand for the expected one; by default it has to be equal.
    """
    for tensor in expected:
        if tensor.name not in found:
            raise ValueError(f"{directory}: missing tensor {tensor.name}, {tensor.dtype} {list(tensor.shape)}")
        if not fits(actual := found[tensor.name], tensor):
            raise ValueError(
                f"{directory}: tensor {tensor.name}: found {actual.dtype} {list(actual.shape)}, "
                f"expected {tensor.dtype} {list(tensor.shape)}"
            )
    if unexpected := set(found) - {tensor.name for tensor in expected}:
        raise ValueError(f"{directory}: unexpected tensor {min(unexpected)}; the config has no such parameter")


def write_model_files(
    directory: Path,
    content: Mapping[str, Any],
    tensors: Sequence[StoredTensor],
    read: Callable[[str], np.ndarray],
    *,
    tokenizer_dir: Path | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a model into an existing directory: `content` as config.json, the tensors, the tokenizer's files.

    `read(name)` returns a tensor; it is called once per tensor, in order. A generation_config.json next to the
    tokenizer is copied; otherwise one is written with the ids of special tokens. Raises DamagedError where the
    tokenizer differs from its seal, and ValueError where a tensor does not have the shape and dtype declared.
    """
    with named_errors(directory):
        _write_json(directory / CONFIG, content)
        if tokenizer_dir is not None:
            verify_tokenizer(tokenizer_dir)
        for name in TOKENIZER_FILES:
            if tokenizer_dir is not None and (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, directory / name)
        if not (directory / GENERATION_CONFIG).exists():
            ids = {key: content.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            ids |= {} if tokenizer_dir is None else _several_ends(tokenizer_dir, ids["eos_token_id"])
            _write_json(directory / GENERATION_CONFIG, {key: value for key, value in ids.items() if value is not None})
        _write_tensors(directory, tensors, read, max_file_bytes)


def _several_ends(tokenizer_dir: Path, eos_id: int | None) -> dict[str, list[int]]:
    """Return the eos_token_id of the config.json next to a tokenizer where it is a list: all of them end a text."""
    path = tokenizer_dir / CONFIG
    found = read_json_object(path).get("eos_token_id") if path.is_file() else None
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        return {}
    return {"eos_token_id": list(dict.fromkeys([*([] if eos_id is None else [eos_id]), *found]))}


def tensor_files_bytes(tensors: Sequence[StoredTensor]) -> int:
    """Return the bytes of the safetensors files of these tensors, with their headers."""
    return sum(map(file_bytes, _by_file(tensors, MAX_FILE_BYTES)))


def _by_file(tensors: Sequence[StoredTensor], max_file_bytes: int) -> list[list[StoredTensor]]:
    files: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.nbytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files


def _write_tensors(
    directory: Path, tensors: Sequence[StoredTensor], read: Callable[[str], np.ndarray], max_file_bytes: int
) -> None:
    groups = _by_file(tensors, max_file_bytes)
    if len(groups) == 1:
        write_tensors(directory / WEIGHTS, groups[0], read)
        return
    weight_map = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(directory / name, group, read)
        weight_map |= {tensor.name: name for tensor in group}
    total = sum(tensor.nbytes for tensor in tensors)
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
