"""A real server on a loopback port, in a thread."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from yunque.server.run import bound_socket, make_server, url_of
from yunque.workspace import Workspace


@dataclass
class Running:
    """A server that runs."""

    workspace: Workspace
    url: str

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=20)

    def raw(self, request: bytes) -> bytes:
        """Everything the server says to bytes that no client would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def opened_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are opened from now on, in their order."""
    from yunque.llm.local import LocalModel

    opened: list[str] = []
    real = LocalModel.open.__func__  # type: ignore[attr-defined]

    def counting(cls: type[LocalModel], workspace: Workspace, ref: str, *others: Any) -> LocalModel:
        opened.append(ref)
        return real(cls, workspace, ref, *others)  # type: ignore[no-any-return]

    monkeypatch.setattr(LocalModel, "open", classmethod(counting))
    return opened


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Starts servers, and ends them after the test."""
    running: list[tuple[object, threading.Thread, socket.socket]] = []

    def started(workspace: Workspace, keys_required: bool = False, **more: Any) -> Running:
        server, bound = make_server(workspace, keys_required, **more), bound_socket("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        running.append((server, thread, bound))
        return Running(workspace, url_of(bound))

    yield started
    for server, thread, bound in running:
        server.should_exit = True  # type: ignore[attr-defined]
        thread.join(10)
        bound.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny_encoder_files() -> Mapping[str, bytes]:
    """The files of a BERT of some thousand random weights, with a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    from yunque.model import new_model, save_model
    from yunque.model.checkpoint import parse_configuration

    words = {word: id for id, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "hola", "mundo"))}
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    fields = {"model_type": "bert", "vocab_size": 6, "max_position_embeddings": 32, **shape}
    model = new_model(parse_configuration(fields, "config.json"), torch.Generator().manual_seed(0))
    return {**save_model(model), "tokenizer.json": tokenizer.to_str().encode()}
