"""Who may call: API keys, pages of other origins; and what nobody gets to see."""

from __future__ import annotations

import argparse
import re
import signal
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient

from jaxpool import LLM
from jaxpool.errors import ValidationError
from jaxpool_serving.command import add_arguments, main
from jaxpool_serving.options import access_options
from jaxpool_serving.state import PROBES

from .conftest import TamperedEngine, serving
from .test_classify import post

KEY = {"Authorization": "Bearer s3cret"}
PAGE = "https://app.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


def keys(*words: str) -> tuple[str, ...]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found: tuple[str, ...] = access_options(parser.parse_args(words))["api_keys"]
    return found


def resources(client: TestClient) -> set[tuple[str, str]]:
    """Method and path of everything the server has."""
    return {(route.method, route.resource.canonical) for route in client.app.router.routes() if route.resource}


async def test_a_key_guards_everything_but_the_probes(llm: LLM) -> None:
    async with serving(llm, api_keys=("s3cret",)) as client:
        everything = resources(client)
        assert {("POST", "/classify"), ("GET", "/metrics")} <= everything
        for method, path in [*everything, ("GET", "/nope")]:
            response = await client.request(method, path)
            assert (response.status == 401) == (path not in PROBES), path
            if response.status == 401:
                assert await response.json() == {"error": "Unauthorized"}
                assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await post(client, {"input": "a"}, **KEY))[0] == 200
        assert (await post(client, {"input": "a"}, Authorization="bearer  s3cret "))[0] == 200
        for wrong in ("Basic s3cret", "s3cret", "Bearer", "Bearer s3cre", "Bearer s3crets", "Bearer \u00e9"):
            assert (await post(client, {"input": "a"}, Authorization=wrong))[0] == 401


async def test_probes_can_be_guarded_too(llm: LLM) -> None:
    async with serving(llm, api_keys=("s3cret",), guard_probes=True) as client:
        for path in ("/health", "/ready", "/metrics"):
            assert (await client.get(path)).status == 401
            assert (await client.get(path, headers=KEY)).status == 200


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# team A\none\n\n  two#no-comment \n")
    assert keys() == ()
    monkeypatch.setenv("JAXPOOL_API_KEY", "env-1\nenv-2\n")
    assert keys() == ("env-1", "env-2")
    assert keys("--api-key", "a", "--api-key", "b") == ("a", "b")
    many = keys("--api-key", "a", "--api-key-file", str(file))
    assert many == ("a", "one", "two#no-comment")


@pytest.mark.parametrize("given", ["", "\n \n", "# only a comment"])
def test_a_secret_that_is_not_there_does_not_open_the_server(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(given)
    with pytest.raises(ValidationError, match="holds no API key"):
        keys("--api-key-file", str(tmp_path / "keys"))
    with pytest.raises(ValidationError, match="API key is empty"):
        keys("--api-key", "")
    monkeypatch.setenv("JAXPOOL_API_KEY", given)
    with pytest.raises(ValidationError, match="API key is empty"):
        keys()
    with pytest.raises(FileNotFoundError):
        keys("--api-key-file", str(tmp_path / "none"))


async def test_pages_of_other_origins_are_off_by_default(llm: LLM) -> None:
    async with serving(llm) as client:
        response = await client.post("/classify", json={"input": "a"}, headers={"Origin": PAGE})
        assert response.status == 200
        assert not [name for name in response.headers if name.startswith("Access-Control")]
        assert (await client.options("/classify", headers=PREFLIGHT)).status == 405


async def test_pages_of_allowed_origins(llm: LLM) -> None:
    allowed = {
        "allowed_origins": (PAGE,),
        "allowed_methods": ("POST",),
        "allowed_headers": ("Authorization", "content-type"),
    }
    async with serving(llm, api_keys=("s3cret",), **allowed) as client:
        preflight = await client.options("/classify", headers=PREFLIGHT)  # without a key, as browsers do
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
        assert preflight.headers["Access-Control-Allow-Methods"] == "POST"
        assert preflight.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
        for headers, status in (({**KEY, "Origin": PAGE}, 200), ({"Origin": PAGE}, 401)):
            response = await client.post("/classify", json={"input": "a"}, headers=headers)
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == PAGE  # a page may read refusals, too
            assert response.headers["Vary"] == "Origin"
        for change in (
            {"Origin": "https://evil.example"},
            {"Access-Control-Request-Method": "DELETE"},
            {"Access-Control-Request-Headers": "x-secret"},
        ):
            assert (await client.options("/classify", headers=PREFLIGHT | change)).status == 403
        stranger = await client.post(
            "/classify", json={"input": "a"}, headers={**KEY, "Origin": "https://evil.example"}
        )
        assert "Access-Control-Allow-Origin" not in stranger.headers


@pytest.mark.parametrize(
    ("word", "origins"), [('["*"]', ("*",)), ("*", ("*",)), ("https://a, https://b", ("https://a", "https://b"))]
)
def test_origins_as_json_or_between_commas(word: str, origins: tuple[str, ...]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--allowed-origins", word]).allowed_origins == origins


INTERNAL = re.compile(r"0x[0-9a-f]{6}|Traceback|\.py\b|/home|site-packages")
BAD_BODIES: list[object] = [
    {},
    [],
    "a",
    {"input": None},
    {"input": {}},
    {"input": [["a"]]},
    {"input": [2**70]},
    {"input": [TamperedEngine.poison]},
    {"input": "a", "truncate_prompt_tokens": 10**9},
    {"input": "a", "truncation_side": "middle"},
    {"input": "a", "model": "../../secret"},
    {"messages": 3},
]


async def test_no_answer_shows_paths_addresses_or_tracebacks(tampered: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise OSError(f"cannot read {Path(__file__).resolve()}: {object()!r}")

    async with serving(tampered) as client:
        for body in BAD_BODIES:
            response = await client.post("/classify", json=body)
            assert response.status >= 400, body
            assert not INTERNAL.search(await response.text()), body
        for path in ("/nope", "/classify/..%2f..%2fetc", "/classify?x=%00"):
            assert not INTERNAL.search(await (await client.get(path)).text())
        monkeypatch.setattr(tampered.tokenizer, "encode", explode)
        response = await client.post("/classify", json={"input": "a"})
        assert response.status == 500
        assert not INTERNAL.search(await response.text())


TWO = ("--model", "a=x", "--model", "b=y")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--ssl-keyfile", "x"), ValidationError, "need --ssl-certfile"),
        (("--ssl-certfile", "none.pem"), FileNotFoundError, "No such file"),
        (("--ssl-certfile", "bad.pem"), ValidationError, "do not work together: a file is not in PEM"),
        (("--model", "m=a", "--model", "m=b"), ValidationError, "Two models are called 'm'"),
        ((*TWO, "--served-model-name", "c"), ValidationError, "--served-model-name names one model"),
        (("--model", "=x"), ValidationError, "say NAME=MODEL"),
        (("--port", "0", "--access-log", "none/log"), FileNotFoundError, "No such file"),
    ],
    ids=lambda given: "" if isinstance(given, type) else " ".join(given) if isinstance(given, tuple) else None,
)
def test_what_cannot_work_is_said_at_once(
    words: tuple[str, ...],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pem").write_text("nothing")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    with pytest.raises(error, match=message):
        main(parser.parse_args(words))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("key", ["two words", " before", "tab\tbed", "café", "line\nbreak"])
def test_a_key_that_no_client_can_send_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValidationError, match="API key 1 of 1 holds a space") as refused:
        keys("--api-key", key)
    assert key not in str(refused.value)


def test_a_file_of_keys_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValidationError, match="keys is not text"):
        keys("--api-key-file", str(tmp_path / "keys"))
