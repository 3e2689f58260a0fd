"""Whether the server is there, whether it takes requests, and its figures."""

import asyncio

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from yunque.server.metrics import CONTENT_TYPE
from yunque.server.service import Service


def router(service: Service) -> APIRouter:
    """`/healthz`, `/readyz` and `/metrics`."""
    routes = APIRouter(tags=["probes"])

    @routes.get("/healthz", summary="Whether the server is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="Whether requests are taken", responses={503: {"description": "Not now"}})
    async def readyz() -> JSONResponse:
        if service.stopping:
            return JSONResponse({"status": "stopping"}, 503, {"Retry-After": "5"})
        if not await asyncio.to_thread(service.is_ready):
            return JSONResponse({"status": "the workspace cannot be read"}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ready"})

    @routes.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    return routes
