import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from jaxlm.common.shelf.card import as_text, card_text
from tests.pages import read_command, shell_lines


def test_the_hub_reads_the_card(shelf, run):
    text = card_text(shelf.add(run, "mine", licence="apache-2.0", notes="the first"), "me/ternary")
    card = ModelCard(text)  # checks the front matter, and the results one by one
    data = card.data.to_dict()
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == (
        "apache-2.0",
        "text-generation",
        "transformers",
    )
    assert data["tags"] == ["jaxlm", "ternary", "bitnet", "packed"] and data["widget"][0]["text"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results == {"bits_per_byte": 1.25, "loss": 2.5}
    assert eval_results_to_model_index("me/ternary", card.data.eval_results or [])[0]["name"] == "me/ternary"
    assert str(ModelCard(str(card))) == str(card)


@pytest.mark.parametrize(
    ("form", "family", "commands"),
    [
        ("packed", "bitnet", ["jaxlm generate", "mlxlm generate", "llama-cli -m model.gguf", "AutoModelForCausalLM"]),
        (
            "mlx",
            "llama",
            ["-m mlx_lm generate", "convert mine@1 for-transformers", "'for-transformers'", "llama-cli -m model.gguf"],
        ),
        ("gguf", "llama", ["llama-cli -m /", "jaxlm convert mine@1 for-transformers --to packed"]),
        ("packed", "hgrn_bit", ["jaxlm generate", "AutoModelForCausalLM"]),
        ("packed", "jaxlm", ["jaxlm generate", "mlxlm generate"]),
    ],
)
def test_a_card_tells_how_four_programs_run_it(shelf, run, form, family, commands):
    found = shelf.add(run, "mine")
    text = card_text(dataclasses.replace(found, entry=dataclasses.replace(found.entry, form=form, family=family)))
    assert all(command in text for command in commands)
    assert ("llama-cli" in text) == any("llama-cli" in command for command in commands)
    assert ("AutoModelForCausalLM" in text) == (family != "jaxlm")
    for line in shell_lines(text):
        if line.split()[0] in ("jaxlm", "mlxlm"):
            command = read_command(f".venv/bin/{line}")
            assert command is not None and command.parse()


def test_a_model_without_a_run_has_no_results(shelf, run):
    found = shelf.add(run, "mine")
    entry = dataclasses.replace(found.entry, run={}, evaluation={}, licence=None, ternary_parameters=0)
    text = card_text(dataclasses.replace(found, entry=entry))
    front = yaml.safe_load(text.split("---")[1])
    assert "model-index" not in front and "license" not in front and "ternary" not in front["tags"]
    assert "## Recipe" not in text and "none of them ternary" in text


def test_texts_are_shown_as_they_are():
    assert as_text("<b> *a* [x](y) `c` | \x1b[0m \u202e") == r"&lt;b&gt; \*a\* \[x\](y) \`c\` \| \\x1b\[0m \\u202e"
