import json
from types import SimpleNamespace

import pytest

from jaxlm.common.evaluation.harness import HarnessModel, load_harness_tasks, run_harness_tasks
from jaxlm.common.evaluation.probes import make_probes, run_probes, write_tasks
from shared_tokenizer.chat.formats import named_chat_format
from shared_tokenizer.chat.messages import Message, encode_generation_prompt
from tests.jaxlm.common.evaluation.fake_models import fake_model


def by_token(before, token):
    return -float((token * 7 + sum(before)) % 13)


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    # It imports torch where there is one, to describe the machine.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


def test_the_harness_finds_the_accuracies_of_the_probes(tokenizer, tmp_path):
    library = ["".join(f"value_{n} = compute(value_{n})\n" for n in range(100, 160))]
    probes = [each for each in make_probes(12, lambda: library) if each.name in ("probe_recall", "probe_next_line")]
    names = write_tasks(tmp_path / "tasks", probes)
    model, _ = fake_model(tokenizer, by_token)
    tasks = load_harness_tasks(names, str(tmp_path / "tasks"))
    found = run_harness_tasks(model, tasks)
    accuracies = [found["results"][name]["acc,none"] for name in names]
    assert accuracies == [result.accuracy for result in run_probes(model, probes)]
    assert found["config"]["model"] == "fake" and len(found["samples"]["probe_recall"]) == 12
    assert run_harness_tasks(model, tasks, limit=4)["n-samples"]["probe_recall"]["effective"] == 4


def test_an_unknown_task_names_the_nearest(tmp_path, monkeypatch):
    write_tasks(tmp_path / "tasks", make_probes(4, lambda: ["".join(f"value_{n} = compute({n})\n" for n in range(99))]))
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "tasks/none.py"))
    with pytest.raises(ValueError, match="found no task probe_recal; did you mean probe_recall"):
        load_harness_tasks(["probe_recal"], str(tmp_path / "tasks"))


def test_a_task_without_its_data_is_refused_before_a_model_runs(tmp_path):
    task = {"task": "gone", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.jsonl")}}, "doc_to_text": "a"}
    (tmp_path / "gone.yaml").write_text(json.dumps(task), "utf-8")
    with pytest.raises(ValueError, match=r"task gone: its data cannot be read: .*gone\.jsonl"):
        load_harness_tasks(["gone"], str(tmp_path))
    with pytest.raises(ValueError, match="task_dir: found no directory"):
        load_harness_tasks(["gone"], str(tmp_path / "none"))


def test_a_rolling_text_is_scored_once_per_token_in_windows(tokenizer):
    model, seen = fake_model(tokenizer, lambda before, token: -1.0, max_seq_len=5)
    text = "some words of a text"
    ids = tokenizer.encode(text)
    assert HarnessModel(model).loglikelihood_rolling(requests((text,), ("",))) == [-float(len(ids)), 0.0]
    assert seen[0][:3] == [tokenizer.bos_id, *ids[:2]]


def test_answers_end_at_the_stop_text_and_at_the_end_token(tokenizer):
    model, seen = fake_model(tokenizer, by_token, answer=tokenizer.encode("return first\nsecond"))
    until, free = {"until": ["\n"], "max_gen_toks": 50}, {"until": [], "max_gen_toks": 50}
    contexts = ("a", until), ("def add", until), ("b", free), ("c", until)
    answers = HarnessModel(model).generate_until(requests(*contexts))
    whole = tokenizer.decode(tokenizer.encode("return first\nsecond"))
    assert answers == [whole.split("\n")[0], whole.split("\n")[0], whole, whole.split("\n")[0]]
    assert sorted(seen) == sorted(tokenizer.encode_prompt(context) for context, _ in contexts)


def test_a_long_prompt_loses_its_start_aloud_and_half_of_the_context_is_for_the_answer(tokenizer):
    lines = []
    model, seen = fake_model(tokenizer, by_token, max_seq_len=8)
    HarnessModel(model, log=lines.append).generate_until(requests(("some words of a text", {"until": []})))
    assert seen == [tokenizer.encode("some words of a text")[-4:]]
    assert lines == ["1 of 1 prompts are longer than 4 tokens: their start is left out"]


def test_a_setting_of_generation_that_is_not_served_is_refused(tokenizer):
    model, _ = fake_model(tokenizer, by_token)
    with pytest.raises(ValueError, match="generation_kwargs: found num_beams, expected do_sample"):
        HarnessModel(model).generate_until(requests(("a", {"num_beams": 4})))


def test_a_conversation_is_scored_by_the_ids_of_the_chat_format(tokenizer):
    chat_format = named_chat_format("alpaca")
    model, seen = fake_model(tokenizer, by_token, chat_format=chat_format)
    adapter = HarnessModel(model)
    text = adapter.apply_chat_template([{"role": "user", "content": "add one"}])
    prompt = encode_generation_prompt((Message("user", "add one"),), tokenizer, chat_format)
    adapter.loglikelihood(requests((text, "two")))
    assert seen == [prompt + tokenizer.encode("two")]
    begun = adapter.apply_chat_template(
        [{"role": "user", "content": "add one"}, {"role": "assistant", "content": "It"}], add_generation_prompt=False
    )
    adapter.generate_until(requests((begun, {"until": []})))
    assert seen[1] == prompt + tokenizer.encode("It")
    assert adapter.chat_template(True) == "alpaca" and "alpaca" in adapter.tokenizer_name
