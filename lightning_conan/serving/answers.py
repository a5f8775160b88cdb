"""Answers to requests: from a body of JSON to one of JSON."""

import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from lightning_conan.serving.contents import Draft, read_messages, read_parts
from lightning_conan.serving.errors import invalid
from lightning_conan.serving.limits import RequestLimits
from lightning_conan.serving.schemas import (
    CohereRequest,
    EmbeddingRequest,
    ImagePart,
    Message,
    SearchRequest,
    TextPart,
    decoder,
)
from lightning_conan.serving.service import Service
from lightning_conan.serving.vectors import Embedded, Format, formatted, stacked


@dataclass(frozen=True)
class Answer:
    """An answer's body, and the tokens that it tells of.

    Args:
        content: JSON.
        usage: Its ``usage``.
    """

    content: bytes
    usage: dict[str, Any]


Drafts = list[Draft | list[int]]
"""Inputs: texts and media, or token ids."""
DECODERS = {path: decoder(path) for path in ("/v1/embeddings", "/v2/embed", "/v1/search")}


def parse(path: str, body: bytearray) -> Any:
    """Parses a body.

    Args:
        path: The request's path, which decides about the schema.
        body: JSON.

    Raises:
        ApiError: It is no JSON, or not of that schema.
    """
    try:
        return DECODERS[path].decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        found = re.search(r"`\$\.?([^`]*)`", str(error))
        message = f"The body must be JSON of {path}'s schema (/openapi.json): {error}."
        raise invalid(message, found[1] if found else None) from error


def read_embeddings(request: EmbeddingRequest, limits: RequestLimits) -> Drafts:
    """Reads the inputs of ``/v1/embeddings``.

    Args:
        request: The request.
        limits: Caps on inputs.

    Raises:
        ApiError: Both or neither of ``input`` and ``messages``, or an input that breaks a rule.
    """
    if (request.input is None) == (request.messages is None):
        raise invalid("A request must have input or messages, one of them, got both or neither.", "input")
    if request.messages is not None:
        many = [one for one in request.messages if isinstance(one, list)]
        single = [one for one in request.messages if isinstance(one, Message)]
        if many and single:
            raise invalid("messages must be turns or conversations, got both.", "messages")
        chats = checked(many, limits) if many else [single]
        return [read_messages(chat, f"messages[{number}]" if many else "messages", limits) for number, chat in enumerate(chats)]
    return read_input(request.input, limits)


def read_input(given: str | list[str | int | list[int]] | None, limits: RequestLimits) -> Drafts:
    """Reads texts and token ids.

    Args:
        given: A text, token ids, or a list of either.
        limits: Caps on inputs.

    Raises:
        ApiError: A mixture, an empty one, or too many.
    """
    if isinstance(given, list) and given and all(isinstance(one, int) for one in given):
        inputs: list[Any] = [given]
    else:
        inputs = given if isinstance(given, list) else [given]
    if len({type(one) for one in inputs}) > 1:
        raise invalid("input must be texts, or lists of token ids, got a mixture.", "input")
    return [read_one(one, f"input[{number}]", limits) for number, one in enumerate(checked(inputs, limits))]


def read_one(one: str | list[int], name: str, limits: RequestLimits) -> Draft | list[int]:
    """Reads a text or token ids.

    Args:
        one: The input.
        name: Its place in the request.
        limits: Caps on inputs.

    Raises:
        ApiError: It is empty or too long.
    """
    if isinstance(one, str):
        return Draft(read_parts([TextPart(one)], name, limits))
    if not 0 < len(one) <= limits.max_characters:
        raise invalid(f"{name} must be 1 to {limits.max_characters} token ids, got {len(one)}.", name)
    return one


def checked(inputs: Sequence[Any], limits: RequestLimits) -> Sequence[Any]:
    """Returns inputs that are not too many.

    Args:
        inputs: The inputs.
        limits: The cap.

    Raises:
        ApiError: There are none, or too many.
    """
    if not 0 < len(inputs) <= limits.max_inputs:
        raise invalid(f"A request must have 1 to {limits.max_inputs} inputs, got {len(inputs)}. Send several requests.", "input")
    return inputs


def read_cohere(request: CohereRequest, limits: RequestLimits) -> Drafts:
    """Reads the inputs of ``/v2/embed``.

    Args:
        request: The request.
        limits: Caps on inputs.

    Raises:
        ApiError: Not exactly one of ``texts``, ``images`` and ``inputs``, or an input that breaks a rule.
    """
    given = {name: value for name in ("texts", "images", "inputs") if (value := getattr(request, name)) is not None}
    if len(given) != 1:
        raise invalid(f"A request must have one of texts, images and inputs, got {[*given] or 'none'}.", "texts")
    ((name, inputs),) = given.items()
    checked(inputs, limits)
    make: Callable[[Any], list[Any]] = {
        "texts": lambda text: [TextPart(text)],
        "images": lambda url: [ImagePart(url)],
        "inputs": lambda mixed: mixed.content,
    }[name]
    return [Draft(read_parts(make(one), f"{name}[{number}]", limits)) for number, one in enumerate(inputs)]


def usage_of(found: Sequence[Embedded]) -> dict[str, Any]:
    """Tokens read and, for a model that reasons, each query's route, its tokens and if they were cut."""
    prompt = sum(one.tokens for one in found)
    written = [one for one in found if one.written is not None]
    reasoning = sum(len(one.written or ()) for one in written)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + reasoning}
    if written:
        usage |= {"completion_tokens": reasoning, "completion_tokens_details": {"reasoning_tokens": reasoning}}
        usage["reasoning"] = [
            {"route": "reasoned" if one.written else "direct", "tokens": len(one.written or ()), "truncated": one.truncated}
            for one in written
        ]
    return usage


async def embeddings(service: Service, body: bytearray) -> Answer:
    """Answers ``/v1/embeddings``.

    Args:
        service: The model.
        body: The request.

    Raises:
        ApiError: The request breaks a rule.
    """

    def read() -> tuple[EmbeddingRequest, Drafts]:
        request = cast(EmbeddingRequest, parse("/v1/embeddings", body))
        return request, read_embeddings(request, service.limits)

    request, drafts = await service.apart(len(body), read)
    side, dim = service.side(request.model, request.input_type), service.dimension(request.dimensions)
    found = await service.engine.embed(await service.items(drafts), side)
    vectors, usage = stacked(found, dim), usage_of(found)
    names = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": service.name}

    def write() -> bytes:
        rows = formatted(vectors, request.encoding_format)
        data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
        return msgspec.json.encode({**names, "data": data, "usage": usage})

    return Answer(await service.apart(vectors.nbytes, write), usage)


async def cohere(service: Service, body: bytearray) -> Answer:
    """Answers ``/v2/embed``.

    Args:
        service: The model.
        body: The request.

    Raises:
        ApiError: The request breaks a rule.
    """

    def read() -> tuple[CohereRequest, Drafts]:
        request = cast(CohereRequest, parse("/v2/embed", body))
        return request, read_cohere(request, service.limits)

    request, drafts = await service.apart(len(body), read)
    side = service.side(request.model, "query" if request.input_type == "search_query" else "document")
    dim = service.dimension(request.output_dimension)
    found = await service.engine.embed(await service.items(drafts), side)
    vectors, usage = stacked(found, dim), usage_of(found)
    kinds: dict[Format, None] = dict.fromkeys(request.embedding_types or ["float"])
    images = sum(piece.modality in ("image", "document") for draft in drafts for piece in media_of(draft))
    billed = {"input_tokens": usage["total_tokens"], **({"images": images} if images else {})}
    more = {
        "id": str(uuid.uuid4()),
        "texts": request.texts or [],
        "meta": {"api_version": {"version": "2"}, "billed_units": billed, "usage": usage},
        "response_type": "embeddings_by_type",
    }

    def write() -> bytes:
        return msgspec.json.encode({**more, "embeddings": {kind: formatted(vectors, kind) for kind in kinds}})

    return Answer(await service.apart(vectors.nbytes, write), usage)


def media_of(draft: Draft | list[int]) -> list[Any]:
    """Media of an input, remote ones too."""
    return [] if isinstance(draft, list) else [piece for piece in draft.pieces if not isinstance(piece, str)]


async def search(service: Service, body: bytearray) -> Answer:
    """Answers ``/v1/search``: the best entries, and the reasoning about the query if there is any.

    Args:
        service: Model and index.
        body: The request.

    Raises:
        ApiError: The request breaks a rule, or there is no index.
    """

    def read() -> tuple[SearchRequest, Drafts]:
        request = cast(SearchRequest, parse("/v1/search", body))
        one = EmbeddingRequest(request.input, None if request.messages is None else [*request.messages])
        return request, read_embeddings(one, service.limits)

    request, drafts = await service.apart(len(body), read)
    if request.top_k > service.limits.max_hits:
        raise invalid(f"top_k must be 1 to {service.limits.max_hits}, got {request.top_k}.", "top_k")
    if not len(service.index):
        raise invalid("The server's index is empty.")
    service.side(request.model, "query")
    found = await service.engine.embed(await service.items(drafts), "query")
    hits = await service.search(found[0], request.top_k, request.modalities)
    reasoning = await service.engine.written(found[0])
    data = [{"object": "hit", "index": number, **hit} for number, hit in enumerate(hits)]
    answer = {"object": "list", "model": service.name, "data": data, "usage": usage_of(found)}
    return Answer(msgspec.json.encode(answer | ({"reasoning": reasoning} if reasoning else {})), usage_of(found))
