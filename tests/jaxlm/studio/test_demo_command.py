import pytest

from jaxlm.studio.demo_command import main
from jaxlm.studio.processes.jobs import KEY_VARIABLE
from jaxlm.studio.studio_config import DemoConfig


@pytest.mark.parametrize("prefix", ["some", "/some/", "//other.example", "/a b", "/../x", '/"><script>'])
def test_a_prefix_is_a_plain_path(prefix):
    assert DemoConfig(model="m", prefix="/some/prefix").prefix == "/some/prefix"
    with pytest.raises(ValueError, match=r"prefix: found .*, expected a path such as /some/prefix"):
        DemoConfig(model="m", prefix=prefix)


@pytest.mark.parametrize("limit", [{"max_prompt_chars": 0}, {"max_tokens": 5000}])
def test_limits_are_bounded(limit):
    with pytest.raises(ValueError, match=f"{next(iter(limit))}: found"):
        DemoConfig(model="m", **limit)


def test_other_machines_need_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr("jaxlm.studio.demo_command.need_pages", lambda extra: None)
    with pytest.raises(ValueError, match=r"host: found 192\.0\.2\.1, .* no key; set JAXLM_STUDIO_KEY"):
        main(DemoConfig(model="m", host="192.0.2.1"))
