"""Inputs in sentence-transformers' forms: texts, media, mixtures, pairs and chat messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePath
from typing import Any

import torch
from blake3 import blake3
from sentence_transformers.base.modality import infer_modality, is_message_dict

from lightning_conan.embedder.packing import Encoded
from lightning_conan.embedder.processor import Decoded, OmniProcessor, Turn
from lightning_conan.embedder.processor import kind_of as kind_of_decoded
from lightning_conan.embedder.sentence_arrays import ArrayReader, is_image
from lightning_conan.embedder.sentence_files import DATA, existing_medium, media_of, medium_of
from lightning_conan.items import MODALITIES, Item, Side

PAIR_ROLES = ("query", "document")
HELD = ("url", "path", "base64")
"""Keys under which a message's part may hold its medium, besides under the name of its type."""


@dataclass(frozen=True)
class InputReader:
    """Reads inputs as the library's own ``Transformer`` module does, under the limits of the processor.

    Args:
        processor: Decodes files and encodes what was decoded.
        sample_frames: False to keep all frames of a video that is in memory already.
    """

    processor: OmniProcessor
    sample_frames: bool = True

    def encode(self, value: Any, prompt: str | None, side: Side) -> Encoded:
        """Encodes one input; a prompt is a system turn before all others.

        Args:
            value: The input.
            prompt: System instruction; None or an empty one is none.
            side: Side of a search, for the instruction's hint.

        Raises:
            ValueError: It is of none of the library's forms, or one of its media is invalid or over a limit.
        """
        return self.encode_turns([*([("system", [prompt])] if prompt else []), *self.turns(value)], side)

    def encode_turns(self, turns: Sequence[Turn], side: Side) -> Encoded:
        """Encodes turns of a chat, of which a first one of the system, if it is text, is the instruction.

        Args:
            turns: From ``turns``.
            side: Side of a search, for the instruction's hint.

        Raises:
            ValueError: One of the media is too small to encode.
        """
        role, parts = turns[0]
        if role != "system":
            return self.processor.encode_turns(turns, None, side)
        words = [part for part in parts if isinstance(part, str)]
        if len(turns) > 1 and len(words) == len(parts):
            return self.processor.encode_turns(turns[1:], "".join(words), side)
        return self.processor.encode_turns(turns, "", side)

    def turns(self, value: Any) -> list[Turn]:
        """Splits an input into turns of a chat: its messages, the two sides of a pair, or a single turn of the user."""
        entries = [value] if is_message_dict(value) else value
        if isinstance(entries, list | tuple) and entries:
            if is_message_dict(entries[0]):
                return [self.turn(message) for message in entries]
            if len(entries) == len(PAIR_ROLES):
                return [(role, self.parts(half)) for role, half in zip(PAIR_ROLES, entries, strict=True)]
        return [("user", self.parts(value))]

    def turn(self, message: Any) -> Turn:
        """Role and parts of one message."""
        if not is_message_dict(message) or not isinstance(message["role"], str):
            raise ValueError(f"A message must be a dictionary with a role, a string, and content, got {message!r:.80}.")
        content = message["content"]
        if isinstance(content, str):
            return message["role"], [content]
        if not isinstance(content, list | tuple):
            raise ValueError(f"A message's content must be a string or a list of parts, got {content!r:.80}.")
        return message["role"], [part for entry in content for part in self.message_part(entry)]

    def message_part(self, entry: Any) -> list[str | Decoded]:
        """Reads a part of a message, ``{"type": "image", "image": ...}``, as in transformers' chat templates.

        Raises:
            ValueError: A part of another form.
        """
        kind = entry.get("type", "text") if isinstance(entry, Mapping) else None
        if kind == "image_url" and "image_url" in entry:
            address = entry["image_url"]
            return self.contents("image", address.get("url") if isinstance(address, Mapping) else address)
        held = [name for name in (kind, *HELD) if kind in MODALITIES and entry.get(name) is not None]
        if not held:
            raise ValueError(
                f"A message's part must have a type of {[*MODALITIES, 'image_url']} and its content under that name, "
                f"got {entry!r:.80}."
            )
        content = entry[held[0]]
        bare = held[0] == "base64" and not DATA.match(str(content))
        return self.contents(kind, f"data:;base64,{content}" if bare else content)

    def parts(self, value: Any) -> list[str | Decoded]:
        """The parts of an input that is no chat, in their order.

        Raises:
            ValueError: None of the documented inputs.
        """
        if isinstance(value, Mapping) and value and set(value) <= set(MODALITIES):
            parts = [part for kind, content in value.items() for part in self.contents(kind, content)]
            if not parts:
                raise ValueError(f"An input must hold something to embed, got {dict(value)!r:.80}. Leave such rows out.")
            return parts
        return self.contents(kind_of(value), value)

    def contents(self, kind: Any, content: Any) -> list[str | Decoded]:
        """Reads one or several media or texts of a kind; None, as in rows of mixed data sets, gives none.

        Args:
            kind: Modality of the content.
            content: One text or medium, a list of them, or None.
        """
        if content is None:
            return []
        frames = kind == "video" and isinstance(content, list | tuple) and content and all(map(is_image, content))
        if not frames and (isinstance(content, list | tuple) or getattr(content, "ndim", 0) == 5):  # videos are of 5 axes
            return [part for each in content for part in self.contents(kind, each)]
        return [self.content(kind, content)]

    def content(self, kind: Any, content: Any) -> str | Decoded:
        """One text or medium.

        Args:
            kind: Modality of the content.
            content: A text, a path, a mapping with a path and a span, or a medium in memory.

        Raises:
            ValueError: Something that is no content of this kind.
        """
        if kind == "text":
            if not isinstance(content, str):
                raise ValueError(f"A text must be a string, got {content!r:.80}.")
            return content
        if isinstance(content, str | PurePath):
            return self.processor.decode(media_of(kind, {"path": str(content)}))
        if isinstance(content, Mapping) and "path" in content and "array" not in content:
            return self.processor.decode(media_of(kind, content))
        return ArrayReader(self.processor.config, self.sample_frames).read(kind, content)


def kind_of(value: Any) -> Any:
    """Modality of an input, as the library infers it; further suffixes of ours, and paths that are no strings, are files too.

    Raises:
        ValueError: It is none of the documented inputs.
    """
    if isinstance(value, PurePath):
        if (kind := medium_of(str(value))) is None:
            raise ValueError(
                f"A path must name a media file by its suffix, got {str(value)!r}. Give {{'image': path}}, or another."
            )
        return kind
    if isinstance(value, str) and (kind := existing_medium(value)):
        return kind
    try:
        return infer_modality(value, list(MODALITIES))
    except ValueError as error:
        raise ValueError(
            f"An input must be a text, a PIL image or a mapping from {list(MODALITIES)} to content (frames: {{'video': [...]}}), "
            f"or of another of sentence-transformers' forms, got {value!r:.80} ({error})."
        ) from error


def content_hash(turns: Sequence[Turn]) -> str:
    """SHA-256 of decoded contents: equal for equal texts, pixels, frames and samples, whatever held them.

    Texts alone, in one turn of the user, have the hash of their ``Item``.
    """
    if [role for role, _ in turns] == ["user"] and all(isinstance(part, str) for part in turns[0][1]):
        return Item(tuple(part for part in turns[0][1] if isinstance(part, str))).content_hash()
    digest = sha256()
    for role, parts in turns:
        digest.update(f"|turn:{role}".encode())
        for part in parts:
            digest.update(part_hash(part))
    return digest.hexdigest()


def part_hash(part: str | Decoded) -> bytes:
    """Hash of a text, or of a decoded medium with its kind and shape."""
    if isinstance(part, str):
        kind, found = "text", blake3(part.encode())
    else:
        kind, tensor = kind_of_decoded(part).hashed(part)
        found = blake3(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"|{kind}:{found.hexdigest()}".encode()
