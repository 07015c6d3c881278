"""The official client, where it reads more than a text: JSON of a schema."""

from typing import Literal

import openai
import pydantic
import pytest

from tests.mlxlm.server.served_models import NAME, open_model, running

USER = {"role": "user", "content": "add"}


class Row(pydantic.BaseModel):
    kind: Literal["add", "return"]
    ok: bool


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture(scope="module")
def api(model, tokenizer):
    with (
        running(model, tokenizer) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_class_of_pydantic_is_answered_whole_and_streamed(api):
    asked = {"model": NAME, "messages": [USER], "response_format": Row, "max_tokens": 200, "seed": 1}
    found = api.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(found, Row)
    with api.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == found
    with pytest.raises(openai.LengthFinishReasonError):
        api.chat.completions.parse(**asked | {"max_tokens": 3})


def test_a_schema_that_cannot_be_followed_is_named(api):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="response_format: schema: found Unimplemented keys") as caught:
        api.chat.completions.create(model=NAME, messages=[USER], response_format=form)
    assert caught.value.param == "response_format"
