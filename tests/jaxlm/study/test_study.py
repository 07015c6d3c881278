import re

import pytest
import yaml

from jaxlm.study.study import read_study

GRID = {
    "question": "Which rate?",
    "settings": {"data_dir": ["data"], "optimizer": {"b2": 0.99}},
    "grid": {"optimizer.learning_rate": [0.004, 0.008], "optimizer.weight_decay": [0, 0.1]},
    "seeds": [0, 1],
}


def write(folder, content):
    path = folder / "rates.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_grid_is_all_combinations_seed_by_seed(tmp_path):
    study = read_study(write(tmp_path, GRID))
    assert list(study.variants) == [
        "learning_rate=0.004,weight_decay=0",
        "learning_rate=0.004,weight_decay=0.1",
        "learning_rate=0.008,weight_decay=0",
        "learning_rate=0.008,weight_decay=0.1",
    ]
    assert study.base == "learning_rate=0.004,weight_decay=0"
    assert [(run.variant, run.seed) for run in study.runs()] == [
        (name, seed) for seed in (0, 1) for name in study.variants
    ]


def test_dotted_settings_reach_into_groups_and_leave_the_rest(tmp_path):
    run = read_study(write(tmp_path, GRID)).runs()[-1]
    assert run.settings(tmp_path) == {
        "data_dir": ["data"],
        "optimizer": {"b2": 0.99, "learning_rate": 0.008, "weight_decay": 0.1},
        "output_dir": str(tmp_path / "learning_rate=0.008,weight_decay=0.1" / "seed-1"),
        "seed": 1,
    }


def test_a_variant_may_name_another_run_of_its_seed(tmp_path):
    content = {
        "question": "Does it help?",
        "variants": {"float": None, "ternary": {"init_from": "{runs}/float/seed-{seed}"}},
        "base": "ternary",
    }
    study = read_study(write(tmp_path, content))
    assert study.seeds == (0, 1, 2) and study.base == "ternary"
    (run,) = (run for run in study.runs() if (run.variant, run.seed) == ("ternary", 2))
    assert run.settings(tmp_path)["init_from"] == str(tmp_path / "float" / "seed-2")


def test_what_training_would_refuse_is_refused_before_the_first_run(tmp_path):
    study = read_study(write(tmp_path, GRID | {"grid": {"optimizer.learning_rate": [0.004, -1]}}))
    with pytest.raises(ValueError, match=r"variant 'learning_rate=-1': .*optimizer.learning_rate: found -1"):
        study.check(tmp_path)


@pytest.mark.parametrize("it", [{"model.sub_norm": False}, {"optimizer.schedule": "cosine"}, {"preset": "dense-tiny"}])
def test_two_variants_that_are_the_same_run_are_refused(tmp_path, it):
    variants = {"first": {"preset": "dense-tiny"}, "second": {"preset": "dense-tiny", **it}}
    content = {"question": "Does it help?", "settings": {"data_dir": ["data"]}, "variants": variants}
    study = read_study(write(tmp_path, content))
    with pytest.raises(ValueError, match="variants 'first' and 'second': found the same settings"):
        study.check(tmp_path)
    read_study(write(tmp_path, GRID)).check(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": [0]}, "found field 'seed'; .*seeds"),
        ({"question": ""}, "question: found ''"),
        ({"settings": {"seed": 1}}, "settings: found seed, which the study sets itself"),
        ({"variants": {"a": {}}}, "variants, grid: expected one of the two"),
        ({"grid": {}}, "grid: found no settings"),
        ({"grid": {"seq_len": 3}}, "grid: seq_len: found 3, expected a list of values"),
        ({"grid": {"a.x": [1, 2], "b": [[1]]}}, "grid: b: found [[1]]"),
        ({"grid": None, "variants": {"../a": {}}}, "variants: found the name '../a'"),
        ({"grid": None, "variants": {"a": {"output_dir": "x"}}}, "variants: a: found output_dir"),
        ({"base": "other"}, "base: found 'other', expected one of the variants"),
        ({"seeds": []}, "seeds: found []"),
        ({"seeds": [0, 0]}, "each seed once"),
        ({"seeds": ["a"]}, "seeds: found ['a']"),
        ({"evaluate": {"model": "x"}}, "evaluate: found model"),
    ],
)
def test_wrong_studies_are_refused_by_field(tmp_path, change, message):
    content = {name: value for name, value in (GRID | change).items() if value is not None}
    parts = [re.escape(part) for part in message.split(".*")]
    with pytest.raises(ValueError, match="rates.yaml: .*" + ".*".join(parts)):
        read_study(write(tmp_path, content))


@pytest.mark.parametrize("text", ["- a\n", "question: [", "\xff"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "rates.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"rates.yaml: (not YAML|expected a mapping)"):
        read_study(path)
