"""What went wrong, as HTTP says it: one sentence, in the shape of the protocol that was spoken."""

from __future__ import annotations


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: the HTTP status.
        message: one sentence: the field, its value, the limit.
        kind: OpenAI's `type`, such as "invalid_request_error".
        param: the field.
        code: OpenAI's `code`.
        retry_after: seconds, for the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after
