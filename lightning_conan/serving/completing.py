"""Inputs of requests to items: remote media are fetched, token ids become text."""

from lightning_conan.items import Item, Media
from lightning_conan.serving.contents import PDF, Draft, Piece, Remote, pages_of
from lightning_conan.serving.engine import Engine
from lightning_conan.serving.errors import invalid
from lightning_conan.serving.fetching import Fetcher


class Completer:
    """Completes the inputs of one request.

    Args:
        engine: Its tokenizer reads token ids.
        fetcher: Fetches media.
        room: Bytes that all media of the request may have.
    """

    def __init__(self, engine: Engine, fetcher: Fetcher, room: int) -> None:
        self.engine, self.fetcher, self.room = engine, fetcher, room

    async def item(self, draft: Draft | list[int]) -> Item:
        """Completes one input.

        Raises:
            ApiError: A medium that cannot be fetched, token ids of another tokenizer, or half a character.
        """
        pieces: list[Piece] = [await self.engine.text_of(draft)] if isinstance(draft, list) else draft.pieces
        parts: list[str | Media] = []
        for piece in pieces:
            parts += await self.fetched(piece) if isinstance(piece, Remote) else [piece]
        try:
            return Item(tuple(parts), None if isinstance(draft, list) else draft.instruction)
        except ValueError as error:
            raise invalid(str(error)) from error

    async def fetched(self, remote: Remote) -> list[Media]:
        """Fetches a remote medium; the pages that its address chooses, if it is a PDF.

        Raises:
            ApiError: It may not or cannot be fetched.
        """
        data = await self.fetcher.fetch(remote.url, remote.name, self.room)
        self.room -= len(data)
        if remote.modality == "image" and data.startswith(b"%PDF-"):
            return [*pages_of("image", PDF, data, remote.fragment, remote.name)]
        return [Media(remote.modality, data, remote.name)]
