"""Providers over https: the way that every hosted one is asked."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_provider import FakeProvider, Fault

from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable
from yunque.llm.open import open_remote
from yunque.llm.transport import Patience
from yunque.llm.under_way import UnderWay

QUESTION = [Message("user", "¿?")]
CONFIG = GenerationConfig()
PATIENT = Patience(connect=5, between_bytes=10, whole=20)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("yunque.invalid")]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def provider(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeProvider(context) as made:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("ANTHROPIC_BASE_URL", made.url("anthropic"))
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
        yield made


def test_it_is_asked_over_tls_and_its_connection_used_again(provider: FakeProvider) -> None:
    model = open_remote(None, "anthropic/x", PATIENT)
    assert model.chat(QUESTION, CONFIG).text == "¡Hola!"
    assert "".join(chunk.text for chunk in model.stream_chat(QUESTION, CONFIG)) == "¡Hola!"
    assert (len(provider.asked), provider.connections) == (2, 1)


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        open_remote(None, "anthropic/x", PATIENT).chat(QUESTION, CONFIG)
    assert provider.asked == []


@pytest.mark.parametrize("kind", ["silence", "silence_midway"])
def test_deadlines_are_kept_and_calls_stopped_over_tls(provider: FakeProvider, kind: str) -> None:
    provider.faults = [Fault(kind, seconds=5), Fault(kind, seconds=5)]
    model = open_remote(None, "anthropic/x", PATIENT)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="deadline"), UnderWay(started + 0.2).current():
        list(model.stream_chat(QUESTION, CONFIG))
    call = UnderWay()
    threading.Timer(0.1, call.stop).start()
    with pytest.raises(ModelUnavailable, match="was stopped"), call.current():
        model.chat(QUESTION, CONFIG)
    assert time.monotonic() - started < 4
    assert model.chat(QUESTION, CONFIG).text == "¡Hola!"


def test_a_proxy_carries_the_call_and_sees_no_key(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def carry(source: socket.socket, target: socket.socket) -> None:
        while block := source.recv(65536):
            seen.append(block)
            target.sendall(block)

    def serve(listening: socket.socket) -> None:
        client, _ = listening.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        seen.append(head)
        target = socket.create_connection(("127.0.0.1", provider.server_port))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=carry, args=(target, client), daemon=True).start()
        carry(client, target)

    for variable in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://yunque.invalid")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-key")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setenv("https_proxy", f"http://me:pass@127.0.0.1:{listening.getsockname()[1]}")
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        model = open_remote(None, "anthropic/x", PATIENT)
        assert model.chat(QUESTION, CONFIG).text == "¡Hola!"
        model.close()
    assert seen[0].startswith(b"CONNECT yunque.invalid:443") and b"Basic bWU6cGFzcw==" in seen[0]
    assert not any(b"sk-secret-key" in block for block in seen)
