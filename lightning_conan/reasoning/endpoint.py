"""A model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp or a provider's."""

import asyncio
import base64
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import httpx

from lightning_conan.items import Item, Media

PATIENT = {408, 409, 429, *range(500, 600)}
"""Answers after which asking again helps."""
FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp", "mp4": "mp4", "webm": "webm", "mov": "quicktime"}
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers, and how hard it may be asked.

    Args:
        url: Up to and without ``/chat/completions``, such as http://localhost:8000/v1.
        model: The name that it serves the model under.
        key: The environment variable that holds the API key.
        concurrency: Questions that are under way at once.
        per_minute: Questions that are begun a minute at most; 0 for any number.
        retries: How often a question is asked again after an error that passes (429, 5xx, no answer), with growing pauses.
        pause: Seconds before the first of these; they double with each further one.
        timeout: Seconds that an answer may take.
        max_tokens: Of an answer.
        temperature: 0 answers greedily.
        prompt_price: Of a million tokens that are read, to report what was spent.
        completion_price: Of a million tokens that are written.
    """

    url: str = "http://localhost:8000/v1"
    model: str = "default"
    key: str = "OPENAI_API_KEY"
    concurrency: int = 16
    per_minute: int = 0
    retries: int = 5
    pause: float = 1.0
    timeout: float = 120.0
    max_tokens: int = 640
    temperature: float = 0.0
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.per_minute < 0 or self.retries < 0 or self.timeout <= 0:
            raise ValueError(
                "concurrency and timeout must be positive, per_minute and retries not negative, "
                f"got {self.concurrency}, {self.timeout}, {self.per_minute} and {self.retries}."
            )


@dataclass(frozen=True)
class Reply:
    """An answer, and what it cost.

    Args:
        text: What was written.
        finished: Whether the model ended by itself.
        prompt_tokens: Read.
        completion_tokens: Written.
    """

    text: str
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0


@runtime_checkable
class Teacher(Protocol):
    """Who answers questions about queries."""

    async def ask(self, key: str, question: str, messages: Messages) -> Reply:
        """The answer to a question (a name in ``prompts/cot.yaml``) about the pair of a key.

        Raises:
            OSError: No answer was to be had.
        """


@dataclass
class Client:
    """Asks an endpoint, within its limits.

    Args:
        endpoint: Where and how.
    """

    endpoint: Endpoint
    started: list[float] = field(default_factory=list)

    async def __aenter__(self) -> "Client":
        secret = os.environ.get(self.endpoint.key, "")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        limits = httpx.Limits(max_connections=self.endpoint.concurrency)
        self.http = httpx.AsyncClient(headers=headers, timeout=self.endpoint.timeout, limits=limits)
        self.places = asyncio.Semaphore(self.endpoint.concurrency)
        self.clock = asyncio.Lock()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()

    async def ask(self, key: str, question: str, messages: Messages, more: Mapping[str, Any] | None = None) -> Reply:
        """The model's answer; asked again while the error is one that passes.

        Args:
            key: What errors call it.
            question: Of no concern to an endpoint.
            messages: The conversation.
            more: Further fields of the request, which not every server knows.

        Raises:
            OSError: No answer after all repetitions, or a refusal that will not pass.
        """
        body = {"model": self.endpoint.model, "messages": messages, "temperature": self.endpoint.temperature}
        body |= {"max_tokens": self.endpoint.max_tokens, **(more or {})}
        problem, turn = "", 0
        while turn <= self.endpoint.retries:
            wait = self.endpoint.pause * 2**turn
            turn += 1
            try:
                async with self.places:
                    await self.turn()
                    response = await self.http.post(f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body)
                if response.status_code == 200:
                    return read_reply(response)
                problem = f"HTTP {response.status_code}: {response.text[:200]}"
                if response.status_code not in PATIENT:
                    break
                wait = max(wait, seconds_of(response.headers))
            except (httpx.TransportError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            if turn <= self.endpoint.retries:
                await asyncio.sleep(wait)
        raise OSError(f"{self.endpoint.url} gave no answer about {key}: {problem}")

    async def turn(self) -> None:
        """Waits until another question may be begun."""
        if not self.endpoint.per_minute:
            return
        async with self.clock:
            now = time.monotonic()
            self.started = [moment for moment in self.started if now - moment < 60]
            if len(self.started) >= self.endpoint.per_minute:
                await asyncio.sleep(60 - (now - self.started[0]))
            self.started.append(time.monotonic())


def read_reply(response: httpx.Response) -> Reply:
    """An answer in OpenAI's form.

    Raises:
        ValueError: Something else.
    """
    try:
        value = response.json()
        choice, usage = value["choices"][0], value.get("usage") or {}
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {response.text[:200]}") from error
    if not isinstance(text, str):
        raise ValueError(f"an answer without text: {response.text[:200]}")
    tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    return Reply(text, choice.get("finish_reason") != "length", *tokens)


def seconds_of(headers: Mapping[str, str]) -> float:
    """What ``Retry-After`` asks for, at most a minute."""
    try:
        return min(60.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def content_of(parts: Sequence[str | Media]) -> list[dict[str, Any]]:
    """Texts and media as parts of a message; media travel as data."""
    return [{"type": "text", "text": part} if isinstance(part, str) else media_part(part) for part in parts]


def media_part(media: Media) -> dict[str, Any]:
    """One medium.

    Raises:
        ValueError: A span of a file, or a PDF: endpoints take whole files only.
    """
    if media.span or media.suffix == "pdf":
        raise ValueError(f"An endpoint takes whole files, got {media.name} with {media.span}. Cut or render it first.")
    data = base64.b64encode(media.read()).decode()
    if media.modality == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": media.suffix}}
    kind = "video" if media.modality == "video" else "image"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/{FORMATS.get(media.suffix, media.suffix)};base64,{data}"}}


def messages_of(item: Item, instruction: str = "") -> Messages:
    """An item as the model is asked about it: the instruction as system turn, the rest as the user's."""
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": content_of(item.parts)}]
