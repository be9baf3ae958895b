"""Errors of the service, each with the HTTP status and stable code it is answered with.

    ServiceError                     what a caller may be told (RFC 9457 problem document)
    +-- MalformedBody          400   the body is not JSON
    +-- Unauthorized           401   no bearer token, or one that is not taken
    +-- Forbidden              403   off as this service is set up
    +-- UnknownDomain          404   the bundle does not list the domain and the policy is `reject`
    +-- UnknownModel           404   no model of that name
    +-- NotFound               404   no such path
    +-- MethodNotAllowed       405
    +-- BodyTooLarge           413
    +-- UnsupportedMediaType   415
    +-- ReloadRefused          409   what is there now cannot be served; admin API
    +-- InvalidRequest         422   JSON, but not what the schema takes
    |   +-- NoItems            422
    |   +-- TooManyItems       422
    |   +-- TooLong            422   a string or list above its limit
    +-- Overloaded             429   in-flight bound reached; carries Retry-After
    +-- InternalError          500   anything unexpected; its cause goes to the log only
    +-- NotReady               503   no verified bundle (yet)
    +-- WorkerSilent           503   a worker did not answer; admin API
    +-- FeedbackUnavailable    503   feedback could not be put on disk; nothing of it was kept
    +-- DeadlineExceeded       504

    StartupError                     why a process cannot serve; shown by the CLI, the log, /health/ready
    +-- RuntimeMissingError          onnxruntime (or its CUDA provider) is not installed
    +-- GraphError                   a graph cannot be opened or does not fit the manifest
    +-- GoldenError                  golden rows do not score as recorded
    +-- BundleRefused                what a reference leads to does not load, or there is no room for it
    +-- RoutingError                 a routing file is wrong, or its bundles cannot serve its domains
    +-- SettingsError                a setting is unknown, or its value not allowed
    +-- TokensError                  a file of bearer tokens cannot be used
    +-- ReplayError                  there are no exposures to replay

    GraphRunError                    a graph failed on a request's rows; answered as InternalError
    +-- NotFiniteError               not finite; answered as InvalidRequest where the request's numbers did it

Invariant: `ServiceError.detail` holds nothing but the caller's own values and the service's limits.
"""

from __future__ import annotations

from typing import Any, ClassVar

PROBLEM_TYPE_PREFIX = "urn:ctr-serve:problem:"


class ServiceError(Exception):
    """What a caller may be told.

    Attributes:
        headers: That go with every reply of this error.
        detail: One sentence for this occurrence.
        field: JSON path of the offending value, e.g. `$.items[3].features.price`.
        limit: What was allowed.
        value: What was sent, shortened.
        retry_after_s: Seconds after which a retry makes sense.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[tuple[tuple[bytes, bytes], ...]] = ()

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        limit: int | float | None = None,
        value: int | float | str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.limit = limit
        self.value = value
        self.retry_after_s = retry_after_s

    def problem(self, request_id: str) -> dict[str, Any]:
        """The RFC 9457 document of this error."""
        document: dict[str, Any] = {
            "type": PROBLEM_TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
        }
        extra = {"field": self.field, "limit": self.limit, "value": self.value}
        document.update({key: value for key, value in extra.items() if value is not None})
        return document


class MalformedBody(ServiceError):
    """The body is not JSON."""

    status = 400
    code = "malformed_json"
    title = "Body is not valid JSON"


class Unauthorized(ServiceError):
    """The request names no bearer token, or one that is not taken; sent with `WWW-Authenticate`."""

    status = 401
    code = "unauthorized"
    title = "A bearer token is needed"
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(ServiceError):
    """What is asked for is off as this service is set up."""

    status = 403
    code = "forbidden"
    title = "Not allowed here"


class UnknownDomain(ServiceError):
    """The bundle does not list the domain and the policy is to reject."""

    status = 404
    code = "unknown_domain"
    title = "Unknown domain"


class UnknownModel(ServiceError):
    """No model of that name is served."""

    status = 404
    code = "unknown_model"
    title = "Unknown model"


class NotFound(ServiceError):
    """No such path."""

    status = 404
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class BodyTooLarge(ServiceError):
    """The body exceeds `max_body_bytes`."""

    status = 413
    code = "body_too_large"
    title = "Body too large"


class UnsupportedMediaType(ServiceError):
    """The body is not declared as plain JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class ReloadRefused(ServiceError):
    """What is there now cannot be served; the last good bundle and routing serve on."""

    status = 409
    code = "reload_refused"
    title = "Reload refused"


class InvalidRequest(ServiceError):
    """JSON, but not what the request or feature schema takes."""

    status = 422
    code = "invalid_request"
    title = "Invalid request"


class NoItems(InvalidRequest):
    """There is nothing to score."""

    code = "no_items"
    title = "No items"


class TooManyItems(InvalidRequest):
    """More candidates than `max_items`."""

    code = "too_many_items"
    title = "Too many items"


class TooLong(InvalidRequest):
    """A string or list exceeds its limit."""

    code = "too_long"
    title = "Value too long"


class Overloaded(ServiceError):
    """The in-flight bound is reached; the request was refused without being read."""

    status = 429
    code = "overloaded"
    title = "Too many requests in flight"


class InternalError(ServiceError):
    """Anything unexpected. Its cause is logged under the request id and never sent."""


class NotReady(ServiceError):
    """No verified bundle is loaded, or the process is draining."""

    status = 503
    code = "not_ready"
    title = "Not ready"


class WorkerSilent(ServiceError):
    """A worker is starting, has ended, or took too long to answer the admin API."""

    status = 503
    code = "worker_silent"
    title = "A worker did not answer"


class FeedbackUnavailable(ServiceError):
    """Feedback could not be put on disk and was not acknowledged."""

    status = 503
    code = "feedback_unavailable"
    title = "Feedback cannot be kept"


class DeadlineExceeded(ServiceError):
    """The request's time ran out."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"


ANSWERED: tuple[type[ServiceError], ...] = (
    MalformedBody,
    Unauthorized,
    Forbidden,
    UnknownDomain,
    UnknownModel,
    NotFound,
    MethodNotAllowed,
    BodyTooLarge,
    UnsupportedMediaType,
    ReloadRefused,
    InvalidRequest,
    NoItems,
    TooManyItems,
    TooLong,
    Overloaded,
    InternalError,
    NotReady,
    WorkerSilent,
    FeedbackUnavailable,
    DeadlineExceeded,
)
"""Every error a caller can meet; the source of the OpenAPI entry."""


class StartupError(Exception):
    """Why a process cannot serve. Its text is meant for operators."""


class RuntimeMissingError(StartupError, ImportError):
    """Onnxruntime, or the execution provider that was asked for, is not installed."""


class GraphError(StartupError):
    """A graph cannot be opened, or does not fit the manifest or schema."""


class GoldenError(StartupError):
    """Golden rows are missing, malformed, or do not score as recorded."""


class BundleRefused(StartupError):
    """The bundle that a reference leads to cannot be loaded, or does not fit beside those that are open."""


class RoutingError(StartupError):
    """A routing file contradicts itself, or names bundles that cannot serve its domains."""


class SettingsError(StartupError):
    """A setting is unknown, or its value is not allowed."""


class TokensError(StartupError):
    """A file of bearer tokens cannot be read, or holds something else; the text never holds a token."""


class ReplayError(StartupError):
    """There are no exposures to replay."""


class GraphRunError(Exception):
    """A graph failed on a request's rows, or returned numbers that are not finite."""


class NotFiniteError(GraphRunError):
    """A graph returned a number that is not finite.

    Attributes:
        row: Of the run, the first one.
    """

    def __init__(self, text: str, *, row: int) -> None:
        super().__init__(text)
        self.row = row
