"""The application: the routes of the API over the models and apps of a workspace."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from yunque import __version__
from yunque.errors import UserError
from yunque.llm import Chunk, ContextOverflow, ModelUnavailable
from yunque.server import probes
from yunque.server.body import read_body
from yunque.server.chat import ChatRequest, ChatShape
from yunque.server.completions import CompletionRequest, CompletionShape, answered
from yunque.server.documents import describe, page
from yunque.server.embeddings import EmbeddingRequest, embedding_body
from yunque.server.errors import ApiError
from yunque.server.parsing import check_media_type, parse
from yunque.server.responses import ResponseRequest, ResponseShape
from yunque.server.sending import Answer, Reply
from yunque.server.served import NoSuchTarget, Served, Target
from yunque.server.service import ServeOptions, Service
from yunque.server.tokens import DetokenizeRequest, TokenizeRequest, detokenized, tokenized, tokenizer_info
from yunque.workspace import Workspace

MOST_BYTES = 4_000_000
# A body that is longer is read in a thread, so that nobody waits for it.
_LONG_BODY = 64_000
T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=BaseModel)


def create_app(workspace: Workspace, keys_required: bool, options: ServeOptions | None = None) -> FastAPI:
    """The server's ASGI application."""
    service = Service(workspace, keys_required, options or ServeOptions())
    served = Served(workspace, service.options.model_bytes)
    service.open_with(served.loading, served.use)
    # FastAPI's own pages of documentation load their scripts from a stranger's server; ours have none.
    app = FastAPI(
        title="Yunque",
        version=__version__,
        openapi_url=None,
        lifespan=service.lifespan,
        redirect_slashes=False,
    )
    service.surround(app)
    app.include_router(probes.router(service))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_models(app, served)
    _add_generation(app, service, served)
    _add_reading(app, service, served)
    _add_documents(app)
    return app


def _add_models(app: FastAPI, served: Served) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "version": __version__})

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": await asyncio.to_thread(served.listed)})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        try:
            return JSONResponse(await asyncio.to_thread(served.described, name))
        except UserError as error:
            raise as_api_error(error) from None


def _add_generation(app: FastAPI, service: Service, served: Served) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = await _asked(CompletionRequest, request)
        settings = asked.settings()
        pieces = _pieces(service, served, asked.model, lambda target: answered(target, asked, settings))
        return Answer(CompletionShape(asked), pieces, bool(asked.stream))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked = await _asked(ChatRequest, request)
        messages, settings = asked.conversation(), asked.settings()
        pieces = _pieces(service, served, asked.model, lambda target: target.chat(messages, settings))
        return Answer(ChatShape(asked), pieces, bool(asked.stream))

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        asked = await _asked(ResponseRequest, request)
        messages, settings = asked.conversation_asked(), asked.settings()
        pieces = _pieces(service, served, asked.model, lambda target: target.chat(messages, settings))
        return Answer(ResponseShape(asked), pieces, bool(asked.stream))


def _add_reading(app: FastAPI, service: Service, served: Served) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        asked = await _asked(EmbeddingRequest, request)
        return Reply(
            _made(
                service,
                served,
                asked.model,
                lambda target: embedding_body(asked, target.embed(asked.texts())),
            )
        )

    @app.post("/tokenize")
    @app.post("/v1/tokenize")
    async def tokenize(request: Request) -> Response:
        asked = await _asked(TokenizeRequest, request)
        return Reply(_made(service, served, asked.model, lambda target: tokenized(target, asked)))

    @app.post("/detokenize")
    @app.post("/v1/detokenize")
    async def detokenize(request: Request) -> Response:
        asked = await _asked(DetokenizeRequest, request)
        return Reply(_made(service, served, asked.model, lambda target: detokenized(target, asked)))

    @app.get("/tokenizer_info")
    @app.get("/v1/tokenizer_info")
    async def info(model: str | None = None) -> Response:
        return Reply(_made(service, served, model, tokenizer_info))


def _add_documents(app: FastAPI) -> None:
    document = describe()

    @app.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    @app.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            page(document), headers={"Content-Security-Policy": "default-src 'unsafe-inline'"}
        )


async def _asked(cls: type[RequestT], request: Request) -> RequestT:
    """The body of a request, checked."""
    check_media_type(request.headers.get("content-type"))
    body = await read_body(request.receive, request.headers, MOST_BYTES)
    if len(body) > _LONG_BODY:
        return await asyncio.to_thread(parse, cls, body)
    return parse(cls, body)


async def _pieces(
    service: Service, served: Served, name: str, ask: Callable[[Target], Iterator[Chunk]]
) -> AsyncGenerator[Chunk]:
    """The answer of the model or app `name`, made in a worker; failures come out as ApiError."""

    def answer() -> Iterator[Chunk]:
        with served.use(name) as target:
            yield from ask(target)

    try:
        async with aclosing(service.workers.iterate(answer)) as pieces:
            async for piece in pieces:
                yield piece
    except (UserError, ModelUnavailable) as error:
        raise as_api_error(error) from None


async def _made(service: Service, served: Served, name: str | None, make: Callable[[Target], T]) -> T:
    """What is made of the model `name` (None: the only one) in a worker; failures come out as ApiError."""

    def work() -> Iterator[T]:
        with served.use(name or served.only_model()) as target:
            yield make(target)

    try:
        async with aclosing(service.workers.iterate(work)) as made:
            return await anext(made)
    except (UserError, ModelUnavailable) as error:
        raise as_api_error(error) from None


def as_api_error(error: UserError | ModelUnavailable) -> ApiError:
    """What a failure is to a client."""
    if isinstance(error, NoSuchTarget):
        return ApiError(404, str(error), "model", "model_not_found")
    if isinstance(error, ModelUnavailable):
        return ApiError(503, str(error), code="model_unavailable")
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), code="context_length_exceeded")
    return ApiError(400, str(error))


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return ApiError(404, f"there is no such path: {method} {path}", code="unknown_url").response()
    if error.status_code == 405:
        response = ApiError(405, f"{path} does not take {method}", code="method_not_allowed").response()
        response.headers.update(error.headers or {})
        return response
    return ApiError(error.status_code, str(error.detail)).response()
