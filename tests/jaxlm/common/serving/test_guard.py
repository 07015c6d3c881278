import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from jaxlm.common.serving.guard import Guard, host_names, origin_names

HOSTS = host_names(8080, ["server.example", "fe80::1"])


async def answer(http):
    return JSONResponse({})


def client(api_key=None, origins=()):
    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/health", "/v1/models")]
    guard = Middleware(Guard, hosts=HOSTS, api_key=api_key, origins=origins)
    return TestClient(Starlette(routes=routes, middleware=[guard]))


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


@pytest.mark.parametrize("host", ["evil.example", "nas:3000", "[fd00::2]:80", "192.168.1.7:8080"])
def test_the_flag_that_the_refusal_names_is_the_way_out(host):
    message = client().get("/health", headers={"Host": host}).json()["error"]["message"]
    flag, name = message.split()[-2:]
    assert (flag, name) == ("--allowed_hosts", host)
    guard = Middleware(Guard, hosts=host_names(8080, [name]), api_key=None)
    served = TestClient(Starlette(routes=[Route("/health", answer)], middleware=[guard]))
    assert served.get("/health", headers={"Host": host}).status_code == 200
    assert served.get("/health", headers={"Host": "other.example:8080"}).status_code == 403


def test_a_long_host_is_cut_in_the_refusal():
    message = client().get("/health", headers={"Host": "x" * 5000}).json()["error"]["message"]
    assert message.startswith(f"Host: found {'x' * 100}, expected")


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


ORIGIN = "http://localhost:3000"


def test_pages_of_an_allowed_site_are_served_and_may_read_the_answer():
    api = client(origins=[ORIGIN])
    headers = {"Host": "localhost:8080", "Origin": ORIGIN}
    for method in ("GET", "POST"):
        answered = api.request(method, "/v1/models", headers=headers)
        assert (answered.status_code, answered.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "Origin" in answered.headers["vary"]
    for other in ("http://localhost:3001", "https://localhost:3000", "null", f"{ORIGIN}.evil"):
        refused = api.get("/v1/models", headers=headers | {"Origin": other})
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
        assert refused.json()["error"]["message"].endswith(f"start it with --allowed_origins {other}")
    assert "access-control-allow-origin" not in api.get("/v1/models", headers={"Host": "localhost:8080"}).headers
    own = {"Host": "localhost:8080", "Origin": "http://localhost:8080"}
    assert api.get("/v1/models", headers=own).status_code == 200


def test_a_browser_may_ask_first_and_without_the_key():
    api = client("secret", origins=[ORIGIN])
    asked = {
        "Host": "localhost:8080",
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    allowed = api.options("/v1/models", headers=asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert allowed.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in allowed.headers
    for wrong in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert api.options("/v1/models", headers=asked | wrong).status_code == 403
    # The request itself needs the key, and the page may read that it does.
    keyless = api.get("/v1/models", headers={"Host": "localhost:8080", "Origin": ORIGIN})
    assert (keyless.status_code, keyless.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_origins_are_sites():
    given = ["HTTP://localhost:3000/", "https://chat.example", "tauri://localhost", "app://obsidian.md"]
    assert origin_names(given) == ["http://localhost:3000", *given[1:]]
    for wrong in ("*", "null", "localhost:3000", "http://", "http://a/b", "http://*.example", ""):
        with pytest.raises(
            ValueError, match=r"allowed_origins: found .*, expected sites such as http://localhost:3000"
        ):
            origin_names([wrong])
