"""Errors of requests, as OpenAI's API words them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's type of an error by status; others below 500 are ``invalid_request_error``."""


class ApiError(Exception):
    """Refuses a request.

    Args:
        status: The HTTP status.
        message: Rule, value and remedy.
        param: The field at fault, such as ``input[0]``.
        code: A word for programs; by default the status' name, such as ``not_found``.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})
        self.code = code or HTTPStatus(status).name.lower()

    def body(self) -> dict[str, Any]:
        """The response's body: OpenAI's ``error``, and Cohere's ``message`` beside it."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "message": self.message}


def invalid(message: str, param: str | None = None) -> ApiError:
    """Makes the error of a request that breaks a rule.

    Args:
        message: Rule, value and remedy.
        param: The field at fault.
    """
    return ApiError(400, message, param, "invalid_value")


def busy(message: str, seconds: float) -> ApiError:
    """Makes the error of a request that comes while too much waits.

    Args:
        message: The cap that was reached.
        seconds: Time after which asking again makes sense.
    """
    return ApiError(429, message, None, "overloaded", {"Retry-After": str(max(1, min(60, round(seconds + 0.5))))})
