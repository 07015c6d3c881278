"""Mistakes at the command line: one line, exit code 2, nothing that was there is touched."""

import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT, run

SPLIT = ("--val_fraction", 0.3)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Token shards made by the command itself."""
    path = tmp_path_factory.mktemp("data")
    for number in range(30):
        (path / f"{number}.txt").write_text(f"def f{number}(x):\n    return x + {number * 7}\n" * 10)
    prepared = run(
        "scripts/prepare_data.py",
        "--input",
        path,
        "--output_dir",
        path / "shards",
        "--vocab_size",
        300,
        *SPLIT,
    )
    assert prepared.returncode == 0, prepared.stderr
    return path


def test_prepare_data_reuses_what_is_the_same_and_refuses_what_is_not(data):
    arguments = [
        "scripts/prepare_data.py",
        "--input",
        data,
        "--output_dir",
        data / "shards",
        *SPLIT,
        "--vocab_size",
    ]
    before = (data / "shards" / "manifest.json").read_bytes()
    again = run(*arguments, 300)
    assert again.returncode == 0 and "holds this corpus already" in again.stdout
    assert_refused(run(*arguments, 310), "holds another corpus: vocab_size was 300 and is now 310")
    assert (data / "shards" / "manifest.json").read_bytes() == before


def test_prepare_data_refuses_missing_empty_and_wrong_input(tmp_path):
    output = ("--output_dir", tmp_path / "shards")
    prepare = "scripts/prepare_data.py"
    assert_refused(run(prepare, "--input", tmp_path / "no.txt", *output, "--vocab_size", 300), "no such file")
    (tmp_path / "empty.txt").write_text("")
    assert_refused(run(prepare, "--input", tmp_path / "empty.txt", *output, "--vocab_size", 300), "found no text")
    assert_refused(run(prepare, "--input", "stdlib", *output), "expected one of the two")
    assert_refused(run(prepare, "--input", "stdlib", *output, "--tokenizer", tmp_path), "found no tokenizer.model")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "huge"], ["preset: found 'huge', expected one of ternary-tiny"]),
        (["--num_train_step", "5"], ["num_train_step"]),
        (["--num_train_steps", "0"], ["num_train_steps: found 0, expected at least 1"]),
        (["--model.num_heads", "5"], ["num_heads: found 5, which does not divide hidden_size 256"]),
        (["--model.layers", "5"], ["--model.layers: a model has no such field; did you mean --model.num_layers?"]),
        (["--seq_len", "4096"], ["seq_len: found 4096, expected at most the model's max_seq_len 512"]),
        (["--batch_size", "10000"], ["batch_size: found 10000, but the training data holds only"]),
        (["--data_weights", "1", "2"], ["data_weights: found [1.0, 2.0], expected 1 positive numbers"]),
        (["--data_dir", "nowhere"], ["nowhere: found no manifest.json, expected token shards"]),
        (["--optimizer.num_cycles", "3"], ["optimizer.num_cycles: has no effect with schedule 'cosine'"]),
        (["--resume", "true"], ["found no run to resume"]),
        (["--init_from", "nowhere"], ["nowhere: no such file or directory, expected a model"]),
        (["--sample_prompt", "word " * 600], ["prompt: found", "expected fewer than the model's context of 512"]),
        (["--seed", "-1"], ["seed: found -1"]),
    ],
)
def test_train_refuses_before_it_writes(data, tmp_path, flags, words):
    run_dir = tmp_path / "run"
    common = [
        "--data_dir",
        data / "shards",
        "--output_dir",
        run_dir,
        "--num_train_steps",
        10,
        "--seq_len",
        16,
    ]
    done = run("scripts/train_jax.py", *common, "--batch_size", 2, "--optimizer.warmup_steps", 2, *flags)
    assert_refused(done, *words)
    assert not run_dir.exists()


def test_train_refuses_shards_of_another_tokenizer_and_damaged_ones(data, tmp_path):
    shutil.copytree(data / "shards", tmp_path / "shards")
    train = ["scripts/train_jax.py", "--data_dir", tmp_path / "shards", "--output_dir", tmp_path / "run"]
    other = run("scripts/train_tokenizer.py", "--input", data, "--output_dir", tmp_path / "other", "--vocab_size", 310)
    assert other.returncode == 0, other.stderr
    model = tmp_path / "shards" / "tokenizer" / "tokenizer.model"
    ours = model.read_bytes()
    model.write_bytes((tmp_path / "other" / "tokenizer.model").read_bytes())
    assert_refused(run(*train), "tokenizer.model: damaged", "restore it from a copy")
    model.write_bytes(ours)
    with (tmp_path / "shards" / "train-00000-00.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x77")
    assert_refused(run(*train), "train-00000-00.npy: damaged")
    assert not (tmp_path / "run").exists()


def test_generate_convert_and_evaluate_refuse_what_is_no_model(data, tmp_path):
    (tmp_path / "folder").mkdir()
    assert_refused(run("scripts/generate_jax.py", "--model", tmp_path / "no"), "no such file or directory")
    command = [sys.executable, "-m", "mlxlm.generate", "--model", str(tmp_path / "folder")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert_refused(done, "found no config.json")
    assert_refused(run("scripts/convert.py", tmp_path / "folder", tmp_path / "out"), "found no config.json")
    assert_refused(run("scripts/convert.py", tmp_path / "folder", tmp_path / "out", "--to", "onnx"), "onnx")
    assert_refused(
        run("scripts/evaluate.py", "--model", tmp_path / "no", "--input", data / "1.txt"), "no such file or directory"
    )
    assert not (tmp_path / "out").exists()
