"""The OpenAPI document, from the schemas of the requests."""

from functools import cache
from typing import Any

import msgspec

import lightning_conan
from lightning_conan.serving.schemas import REQUESTS

SUMMARIES = {
    "/v1/embeddings": "Embeddings as OpenAI's clients ask for them, with vLLM's messages for media.",
    "/v2/embed": "Embeddings as Cohere's clients ask for them.",
    "/v1/search": "The nearest entries of the server's index.",
    "/v1/models": "The served model, and its sides.",
    "/health": "200 while the server takes requests.",
    "/metrics": "Figures in Prometheus' text form.",
    "/openapi.json": "This document.",
}
REFUSALS = {
    "400": "The request breaks a rule.",
    "401": "The key is missing or wrong.",
    "404": "No such model, or no index.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is no plain JSON.",
    "421": "The Host is not one of the server's.",
    "429": "Too many requests; Retry-After says when to ask again.",
    "500": "The server failed.",
    "503": "The server ends.",
    "504": "The request took too long.",
}
ERROR = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "message": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        },
    },
}


def responses(kind: str) -> dict[str, Any]:
    """Describes the responses of a path.

    Args:
        kind: Media type of a good one.
    """
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {"200": {"description": "Done.", "content": {kind: {}}}}
    return found | {status: {"description": words, "content": refused} for status, words in REFUSALS.items()}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of all paths."""
    schemas, components = msgspec.json.schema_components(REQUESTS.values(), ref_template="#/components/schemas/{name}")
    bodies = dict(zip(REQUESTS, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, summary in SUMMARIES.items():
        about: dict[str, Any] = {
            "summary": summary,
            "responses": responses("text/plain" if path == "/metrics" else "application/json"),
        }
        if path in bodies:
            about["requestBody"] = {"required": True, "content": {"application/json": {"schema": bodies[path]}}}
        if path == "/health":
            about["security"] = []
        paths[path] = {"post" if path in bodies else "get": about}
    return {
        "openapi": "3.1.0",
        "info": {"title": "conan serve", "version": lightning_conan.__version__},
        "paths": paths,
        "components": {
            "schemas": components | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }
