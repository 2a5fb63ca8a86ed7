"""HTTPS and Unix sockets: the real command, with certificates made here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from patience import PATIENCE

from jaxpool import AsyncClient, Client

from .conftest import MODELS
from .test_lifecycle import SMALL, refused

MODEL = ("--model", str(MODELS / "gpt2-cls"), *SMALL)
PASSWORD = "opensesame"


@contextmanager
def server(
    *arguments: str, stdout: Path | None = None, pid: list[int] | None = None, **environment: str
) -> Iterator[str]:
    """The command in its own process; yields what it says it listens on."""
    command = [str(Path(sys.executable).parent / "jaxpool"), "serve", "--port", "0", *MODEL, *arguments]
    environment = os.environ | {"JAXPOOL_API_KEY": "s3cret"} | environment
    with (
        (stdout or Path(os.devnull)).open("w") as output,
        subprocess.Popen(command, text=True, env=environment, stderr=subprocess.PIPE, stdout=output) as process,
    ):
        assert process.stderr is not None
        if pid is not None:
            pid.append(process.pid)
        try:
            yield next(found[1] for line in process.stderr if (found := re.search(r"listening on (\S+),", line)))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """A certificate of this machine with its key, encrypted, and the authority that signed it."""
    issued = authority.issue_cert("127.0.0.1")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(PASSWORD.encode())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "key.pem").write_bytes(pem)
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_https_with_certificates_of_both_sides(authority: trustme.CA, files: dict[str, str]) -> None:
    arguments = ("--ssl-certfile", files["certificate"], "--ssl-keyfile", files["key"])
    with server(*arguments, "--ssl-ca-certs", files["authority"], JAXPOOL_SSL_KEYFILE_PASSWORD=PASSWORD) as address:
        assert address.startswith("https://")
        known = trusting(authority)
        authority.issue_cert("client@example.org").configure_cert(known)
        async with AsyncClient(address, api_key="s3cret", ssl_context=known) as client:
            await client.wait_until_ready()
            assert len((await client.classify("a"))[0].probs) == 3
        for context, reason in (
            (ssl.create_default_context(), "certificate verify failed"),
            (trusting(authority), "no answer"),
        ):
            async with AsyncClient(address, ssl_context=context, max_retries=0) as stranger:
                with pytest.raises(ConnectionError, match=reason):
                    await stranger.classify("a")
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(address.replace("https", "http") + "/health")


def test_an_old_protocol_is_refused(authority: trustme.CA, files: dict[str, str]) -> None:
    arguments = ("--ssl-certfile", files["certificate"], "--ssl-keyfile", files["key"])
    with server(*arguments, JAXPOOL_SSL_KEYFILE_PASSWORD=PASSWORD) as address:
        host, port = address.removeprefix("https://").split(":")
        old = trusting(authority)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection((host, int(port))) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain, server_hostname=host)
        # no certificate is asked of clients unless --ssl-ca-certs says so
        with Client(address, api_key="s3cret", ssl_context=trusting(authority)) as client:
            client.wait_until_ready()


async def test_a_unix_socket(tmp_path: Path) -> None:
    path, log = str(tmp_path / "jaxpool.sock"), tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as stale:  # left behind by a server that was killed
        stale.bind(path)
    with server("--uds", path, stdout=log) as address:
        assert address == f"http://unix:{path}"
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
            assert (await session.get("http://localhost/health")).status == 200
            assert (await session.get("http://localhost/load")).status == 401
    # by default the access log goes to standard output, to the last line before the end
    assert [json.loads(line)["path"] for line in log.read_text().splitlines()] == ["/load"]


def test_a_missing_certificate_is_named(files: dict[str, str], tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.pem")
    for arguments in (
        ("--ssl-certfile", missing),
        ("--ssl-certfile", files["certificate"], "--ssl-keyfile", missing),
        ("--ssl-certfile", files["certificate"], "--ssl-keyfile", files["key"], "--ssl-ca-certs", missing),
    ):
        assert f"No such file or directory: {missing}" in refused(*arguments, JAXPOOL_SSL_KEYFILE_PASSWORD=PASSWORD)


async def test_a_handshake_that_does_not_come_is_not_waited_for(authority: trustme.CA, files: dict[str, str]) -> None:
    arguments = ("--ssl-certfile", files["certificate"], "--ssl-keyfile", files["key"], "--idle-timeout", "0.5")
    with server(*arguments, JAXPOOL_SSL_KEYFILE_PASSWORD=PASSWORD) as address:
        reader, writer = await asyncio.open_connection(*address.removeprefix("https://").split(":"))
        async with asyncio.timeout(PATIENCE):  # by default it is a minute
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_sighup_reads_keys_and_certificates_anew(
    authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first")
    arguments = ("--ssl-certfile", files["certificate"], "--ssl-keyfile", files["key"], "--api-key-file", str(keys))
    with server(*arguments, JAXPOOL_SSL_KEYFILE_PASSWORD=PASSWORD, pid=(pid := [])) as address:

        async def version(key: str, trusted: trustme.CA) -> int:
            connector = aiohttp.TCPConnector(ssl=trusting(trusted), force_close=True)
            headers = {"Authorization": f"Bearer {key}"}
            async with (
                aiohttp.ClientSession(connector=connector, headers=headers) as session,
                session.get(f"{address}/version") as response,
            ):
                return response.status

        assert await version("first", authority) == 200
        keys.write_text("")  # not this
        os.kill(pid[0], signal.SIGHUP)
        other = trustme.CA()
        issued = other.issue_cert("127.0.0.1")
        await asyncio.sleep(0.3)
        assert await version("first", authority) == 200
        keys.write_text("second")
        issued.cert_chain_pems[0].write_to_path(files["certificate"])
        issued.private_key_pem.write_to_path(files["key"])
        os.kill(pid[0], signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    assert await version("second", other) == 200
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
        assert await version("first", other) == 401
