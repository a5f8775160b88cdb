"""A model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp or a provider's."""

import asyncio
import base64
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import httpx

from lightning_conan.items import Item, Media
from lightning_conan.reasoning.answers import NoAnswerError, Reply, UnusableError, printable, read_reply
from lightning_conan.web import Inflater, check_host, file_url, redact, redact_logs, secrets_of, without_secrets

LARGEST = 2**24
"""Bytes of an answer, once inflated."""
TOLD = 240
"""Characters of what went wrong in an error."""
FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp", "mp4": "mp4", "webm": "webm", "mov": "quicktime"}
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Endpoint:
    """Address of a model, and limits on requests to it.

    Args:
        url: Address without ``/chat/completions``, such as http://localhost:8000/v1; a query (``?api-version=...``) stays last.
        model: Name under which the server has the model.
        key: Environment variable that holds the API key.
        concurrency: Questions that are under way at the same time.
        per_minute: Most questions that are started a minute; 0 for any number.
        retries: Times that a question is asked again after a temporary error (429, 5xx, no answer), with growing pauses.
        pause: Seconds before the first of these; doubled for each further one.
        timeout: Seconds that an answer may take.
        max_tokens: Most tokens of an answer.
        temperature: Sampling temperature; 0 is greedy.
        prompt_price: Price of a million tokens that are read, to report the cost.
        completion_price: Price of a million tokens that are generated.
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
        check_host(self.url)
        host = without_secrets(self.url).partition("://")[2].partition("/")[0]
        if not (self.url.startswith(("http://", "https://")) and host and self.url.isprintable()):
            raise ValueError(
                f"An endpoint's url must begin with http:// or https:// and a host, got {without_secrets(self.url)!r}. "
                "Write it as in http://localhost:8000/v1."
            )

    def __repr__(self) -> str:
        return f"Endpoint({without_secrets(self.url)!r}, {self.model!r})"

    @property
    def secret(self) -> str:
        """The API key, without what a file puts around it (a byte-order mark, the end of a line).

        Raises:
            ValueError: It cannot be sent.
        """
        found = os.environ.get(self.key, "").strip().strip("\ufeff").strip()
        odd = [place for place, character in enumerate(found, start=1) if not (character.isascii() and character.isprintable())]
        if odd:
            raise ValueError(
                f"The API key in the variable of --endpoint.key must be printable ASCII, got another at place {odd[0]}."
            )
        return found


@runtime_checkable
class Teacher(Protocol):
    """Answers questions about queries."""

    async def ask(self, key: str, question: str, messages: Messages) -> Reply:
        """Answers a question about a pair.

        Args:
            key: Key of the pair.
            question: Name of the prompt in ``prompts/cot.yaml``, such as ``route`` or ``verify``.
            messages: The conversation, in OpenAI's form.

        Raises:
            OSError: No answer was to be had.
        """


@dataclass
class Client:
    """Sends questions to an endpoint, within its limits.

    Args:
        endpoint: Address and limits.
    """

    endpoint: Endpoint
    started: list[float] = field(default_factory=list)

    async def __aenter__(self) -> "Client":
        secret = self.endpoint.secret
        self.secrets = {secret} | secrets_of(self.endpoint.url)
        redact_logs()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {secret}"} if secret else {}
        limits = httpx.Limits(max_connections=self.endpoint.concurrency)
        self.http = httpx.AsyncClient(headers=headers, timeout=self.endpoint.timeout, limits=limits)
        self.places = asyncio.Semaphore(self.endpoint.concurrency)
        self.clock = asyncio.Lock()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()

    async def ask(self, key: str, question: str, messages: Messages, more: Mapping[str, Any] | None = None) -> Reply:
        """Asks for the model's answer; asks again after a temporary error.

        Args:
            key: Name of the question in errors.
            question: Unused.
            messages: The conversation, in OpenAI's form.
            more: Further fields of the request, which not every server knows.

        Returns:
            The answer, with the tokens of all attempts.

        Raises:
            NoAnswerError: No answer after all repetitions, or a refusal that will not pass.
        """
        body = {"model": self.endpoint.model, "messages": messages, "temperature": self.endpoint.temperature}
        body |= {"max_tokens": self.endpoint.max_tokens, **(more or {})}
        problem, spent = "", Reply("")
        for turn in range(self.endpoint.retries + 1):
            wait = self.endpoint.pause * 2**turn
            try:
                return plus(await self.post(body), spent)
            except UnusableError as error:
                problem, spent, wait = str(error), plus(spent, error.cost), max(wait, error.wait)
                if not error.passes:
                    break
            except Exception as error:  # a body may be anything, and no question may end the others
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            if turn < self.endpoint.retries:
                await asyncio.sleep(wait)
        problem = printable(redact(problem, *self.secrets), TOLD)
        raise NoAnswerError(f"{without_secrets(self.endpoint.url)} gave no answer about {key}: {problem}", spent) from None

    async def post(self, body: Mapping[str, Any]) -> Reply:
        """Sends one request.

        Raises:
            UnusableError: What came back is no answer.
        """
        async with self.places:
            await self.turn()
            url, content = file_url(self.endpoint.url, "chat/completions"), json.dumps(body).encode()
            async with self.http.stream("POST", url, content=content) as response:
                async with asyncio.timeout(self.endpoint.timeout):  # the client's own is for silence alone
                    found = await read_body(response)
        return read_reply(response.status_code, response.headers, found)

    async def turn(self) -> None:
        """Waits until the rate limit allows another question."""
        if not self.endpoint.per_minute:
            return
        async with self.clock:
            now = time.monotonic()
            self.started = [moment for moment in self.started if now - moment < 60]
            if len(self.started) >= self.endpoint.per_minute:
                await asyncio.sleep(60 - (now - self.started[0]))
            self.started.append(time.monotonic())


async def read_body(response: httpx.Response) -> bytes:
    """Reads and inflates a body.

    Raises:
        ValueError: It is larger than ``LARGEST``.
    """
    inflater, body = Inflater(response.headers.get("content-encoding", "")), bytearray()
    async for data in response.aiter_raw():
        for block in inflater.feed(data):
            body += block
            if len(body) > LARGEST:
                raise ValueError(f"an answer has at most {LARGEST:,} bytes, got more")
    return bytes(body + inflater.end())


def plus(reply: Reply, cost: Reply) -> Reply:
    """Returns an answer with the tokens of another added.

    Args:
        reply: The answer to return.
        cost: The one whose tokens are added.
    """
    prompt, completion = reply.prompt_tokens + cost.prompt_tokens, reply.completion_tokens + cost.completion_tokens
    return replace(reply, prompt_tokens=prompt, completion_tokens=completion)


def content_of(parts: Sequence[str | Media]) -> list[dict[str, Any]]:
    """Encodes texts and media as parts of a message; media are sent as base64."""
    return [{"type": "text", "text": part} if isinstance(part, str) else media_part(part) for part in parts]


def media_part(media: Media) -> dict[str, Any]:
    """Encodes a medium as a part of a message.

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
    """Makes the conversation that asks about an item.

    Args:
        item: Its parts become the user's turn.
        instruction: The system turn; none if it is empty.

    Raises:
        ValueError: A span of a file, or a PDF: endpoints take whole files only.
    """
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": content_of(item.parts)}]
