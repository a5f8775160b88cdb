"""Answers of an OpenAI-compatible endpoint, whose body may hold anything; its tokens count in any case."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATIENT = {408, 409, 429, *range(500, 600)}
"""Answers after which asking again helps."""
FAILED = {"error", "abort", "insufficient_system_resource"}
"""Errors within an answer that the server could not finish."""
FILTERED = re.compile(r"content_?filter|content_policy|responsible_?ai|data_inspection|moderation|safety", re.IGNORECASE)
"""Codes of errors by which providers refuse a question, such as Azure's ``content_filter``."""
WITHHELD, REFUSED = "withheld by a filter", "refusal"
EXCERPT = 4096
MOST = 2**40
"""Tokens that no answer has."""


@dataclass(frozen=True)
class Reply:
    """An answer, and its tokens.

    Args:
        text: The generated text.
        finished: True if the model ended by itself, False if the token limit cut it.
        prompt_tokens: Tokens that were read.
        completion_tokens: Tokens that were generated.
        withheld: Reason for an empty text that a filter or the model's refusal left: asked again, it would be the same.
    """

    text: str
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    withheld: str = ""


class UnusableError(ValueError):
    """A body that holds no answer.

    Args:
        reason: Text of the error.
        cost: Tokens that the body reports nevertheless.
        passes: True if asking again may help.
        wait: Least seconds to wait before that.
    """

    def __init__(self, reason: str, cost: Reply, passes: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.cost, self.passes, self.wait = cost, passes, wait


class NoAnswerError(OSError):
    """A question without an answer.

    Args:
        message: Text of the error, without secrets.
        cost: Tokens of all attempts.
    """

    def __init__(self, message: str, cost: Reply = Reply("")) -> None:  # frozen
        super().__init__(message)
        self.cost = cost


def read_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """Reads an answer in OpenAI's form.

    Args:
        status: HTTP status.
        headers: The response's headers, for ``Retry-After``.
        body: The inflated body, of any content.

    Raises:
        UnusableError: Something else.
    """
    value = parsed(body)
    cost = cost_of(value)
    if is_filtered(value):
        return Reply("", False, cost.prompt_tokens, cost.completion_tokens, WITHHELD)
    if status != 200:
        raise UnusableError(f"HTTP {status}: {excerpt(body)}", cost, status in PATIENT, seconds_of(headers))
    try:
        choice = value["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = text_of(message.get("content")), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnusableError(f"not a chat completion: {excerpt(body)}", cost) from error
    if reason in ("content_filter", "refusal") or (refusal and not text):
        withheld = WITHHELD if reason == "content_filter" else REFUSED
        return Reply("", False, cost.prompt_tokens, cost.completion_tokens, withheld)
    if isinstance(reason, str) and reason in FAILED:
        raise UnusableError(f"the answer ended with {reason!r}: {excerpt(body)}", cost)
    return Reply(text, reason != "length", cost.prompt_tokens, cost.completion_tokens)


def parsed(body: bytes) -> Any:
    """Parses a body's JSON, in any Unicode encoding; None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def text_of(content: object) -> str:
    """Text of a message: empty if a model ended without one, such as in the middle of its hidden reasoning.

    Raises:
        TypeError: It is neither a text nor a list of parts.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def cost_of(value: object) -> Reply:
    """The tokens that a body reports; 0 where it reports none."""
    usage = value.get("usage") if isinstance(value, dict) else None
    found = usage if isinstance(usage, dict) else {}
    return Reply("", False, tokens(found.get("prompt_tokens")), tokens(found.get("completion_tokens")))


def tokens(value: object) -> int:
    """Reads a number of tokens; 0 for any other value."""
    return int(value) if isinstance(value, (int, float)) and 0 < value < MOST else 0


def is_filtered(value: object) -> bool:
    """True for the error of a provider whose filter refuses the question."""
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return False
    inner = error.get("innererror")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return any(isinstance(code, str) and FILTERED.search(code) for code in codes)


def seconds_of(headers: Mapping[str, str]) -> float:
    """Seconds of ``Retry-After``, at most a minute."""
    try:
        return min(60.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def excerpt(body: bytes) -> str:
    """The beginning of a body, for an error."""
    return body[:EXCERPT].decode("utf-8", "replace")


def printable(text: str, most: int) -> str:
    """Puts a text on one line without characters that a terminal obeys.

    Args:
        text: The text.
        most: Characters to keep.
    """
    words = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in words)[:most]
