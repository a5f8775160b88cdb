"""Requests as clients send them; fields that are not listed are ignored."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]
Chosen = Literal["query", "document"]
"""Side of a search; a target is a document in clients' words."""


class Link(Struct):
    """A medium by its URL.

    Args:
        url: ``data:image/png;base64,...``, or ``http(s)://`` with a host that the server allows. A PDF's URL may end with
            ``#page=3`` or ``#page=2-5``.
    """

    url: str


class Sound(Struct):
    """An audio clip.

    Args:
        data: The file in base64.
        format: Its suffix, such as ``wav``.
    """

    data: str
    format: str = ""


class TextPart(Struct, tag_field="type", tag="text"):
    """A text."""

    text: str


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """An image, or pages of a PDF."""

    image_url: Link | str


class AudioPart(Struct, tag_field="type", tag="audio_url"):
    """An audio clip by its URL."""

    audio_url: Link | str


class VideoPart(Struct, tag_field="type", tag="video_url"):
    """A video."""

    video_url: Link | str


class SoundPart(Struct, tag_field="type", tag="input_audio"):
    """An audio clip in the request."""

    input_audio: Sound


Part = TextPart | ImagePart | AudioPart | VideoPart | SoundPart


class Message(Struct):
    """A turn: the user's holds what is embedded, the system's before it overrides the folder's instruction.

    Args:
        role: ``system`` or ``user``.
        content: A text, or parts in order.
    """

    role: Literal["system", "user"]
    content: str | list[Part]


class EmbeddingRequest(Struct):
    """``/v1/embeddings``: OpenAI's fields, and vLLM's ``messages`` for media.

    Args:
        input: A text, a list of texts, the token ids of a text, or a list of these.
        messages: Instead of ``input``: the conversation of one embedding, or a list of conversations.
        model: The served model's name; ``NAME:query`` and ``NAME:document`` choose the side, too.
        encoding_format: ``base64`` is little-endian float32.
        dimensions: Leading dimensions to keep, of those that the model was trained for (Matryoshka).
        input_type: Side of a search; needed by models that read both differently.
    """

    input: str | list[str | int | list[int]] | None = None
    messages: list[Message | list[Message]] | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    input_type: Chosen | None = None


class Content(Struct):
    """One of Cohere's mixed inputs."""

    content: list[Part]


class CohereRequest(Struct):
    """``/v2/embed``: Cohere's fields, exactly one of ``texts``, ``images`` and ``inputs``.

    Args:
        input_type: ``search_query`` takes the query's side, all others the document's.
        model: The served model's name.
        texts: Texts.
        images: Images as data URIs.
        inputs: Mixed inputs.
        embedding_types: ``float``, or ``base64`` (little-endian float32).
        output_dimension: Leading dimensions to keep.
        truncate: Accepted; an input that is too long is refused in any case.
    """

    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"]
    model: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[Content] | None = None
    embedding_types: list[Literal["float", "base64"]] | None = None
    output_dimension: Positive | None = None
    truncate: Literal["NONE", "START", "END"] = "END"


class SearchRequest(Struct):
    """``/v1/search``: one query over the server's index, exactly.

    Args:
        input: The query's text.
        messages: Instead of ``input``: the query's conversation.
        model: The served model's name.
        top_k: Number of entries to find.
        modalities: Those of the entries to find, as the index has them, such as ``image`` or ``image+text``; by default any.
    """

    input: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    top_k: Positive = 10
    modalities: list[str] | None = None


REQUESTS: dict[str, type[Struct]] = {
    "/v1/embeddings": EmbeddingRequest,
    "/v2/embed": CohereRequest,
    "/v1/search": SearchRequest,
}
"""Schema of a request by path."""


def decoder(path: str) -> "msgspec.json.Decoder[Struct]":
    """Makes the decoder of a path's requests."""
    return msgspec.json.Decoder(REQUESTS[path])
