import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mlxlm.server.guard import Guard, host_names

HOSTS = host_names(8080, ["server.example", "fe80::1"])


async def answer(http):
    return JSONResponse({})


def client(api_key=None):
    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/health", "/v1/models")]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(Guard, hosts=HOSTS, api_key=api_key)]))


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST:8080", "[::1]:8080", "server.example:8080"])
def test_the_names_of_the_server_are_served(host):
    assert client().get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost", "localhost:80", "", "127.0.0.1:80800"]
)
def test_another_host_is_refused_on_every_route(host, path):
    answered = client().get(path, headers={"Host": host})
    assert answered.status_code == 403
    assert answered.json()["error"]["code"] == "bad_host"


def test_two_hosts_are_refused():
    headers = [("Host", "localhost:8080"), ("Host", "localhost:8080")]
    assert client().get("/health", headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere"])
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://localhost:8080", "http://localhost", "http://localhost:8080.evil"],
)
def test_pages_of_other_sites_are_refused_on_every_route(origin, path):
    for method in ("GET", "POST", "OPTIONS"):
        answered = client().request(method, path, headers={"Host": "localhost:8080", "Origin": origin})
        assert answered.status_code == 403
        assert not any(name.startswith("access-control") for name in answered.headers)


def test_the_servers_own_pages_are_served():
    headers = {"Host": "localhost:8080", "Origin": "http://localhost:8080"}
    assert client().get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer ", "secret", "bearer secret", "Bearer secret2", "Bearer \xe9"]
)
def test_without_the_key_nothing_but_health_is_served(given):
    headers = {"Host": "localhost:8080"} | ({} if given is None else {"Authorization": given.encode("latin-1")})
    answered = client("secret").get("/v1/models", headers=headers)
    assert (answered.status_code, answered.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "secret" not in answered.text
    assert client("secret").get("/health", headers=headers).status_code == 200


def test_with_the_key_it_is():
    headers = {"Host": "localhost:8080", "Authorization": "Bearer secret"}
    assert client("secret").get("/v1/models", headers=headers).status_code == 200


def test_the_default_port_is_left_out():
    assert {"localhost", "localhost:80", "server.example"} <= set(host_names(80, ["server.example"]))
    assert "localhost" not in HOSTS and "[fe80::1]:8080" in HOSTS
