"""Every error that a client or an admin can be told of. `status` and `code` are class attributes.

LlmdError                   500 internal_error
├── BadRequest              400 invalid_request
│   ├── ContextExceeded     400 context_length_exceeded
│   ├── PolicyInvalid       400 policy_invalid           a policy that cannot be, with the line that is wrong
│   ├── ModelInvalid        400 model_invalid            a model file that is damaged or not supported
│   ├── SchemaUnsupported   400 schema_unsupported       no answer can be held to this JSON schema
│   ├── SchemaTooComplex    400 schema_too_complex       it takes too long, or too much memory, to read
│   ├── AnswerInvalid       422 answer_invalid           the model's answer does not fit the schema
│   ├── RequestCrashesWorker 400 request_crashes_worker  the model's process crashed with it, twice
│   ├── BodyTooLarge        413 body_too_large
│   ├── BodyTimeout         408 body_timeout
│   └── MediaType           415 unsupported_media_type
├── Forbidden               403 forbidden
│   ├── ClientUnknown       403 client_unknown           of another node, or not in the state database
│   ├── CertificateRevoked  403 certificate_revoked
│   ├── CertificateExpired  403 certificate_expired
│   └── OutsideHours        403 outside_hours            the policy has other hours for this client and model
├── NotFound                404 not_found
│   └── ModelNotFound       404 model_not_found
├── MethodNotAllowed        405 method_not_allowed
├── Conflict                409 conflict
│   └── DoesNotFit          409 does_not_fit             no GPUs hold the model as it was asked for
├── ClientTooSlow           408 client_too_slow          it does not read its stream
├── RateLimited             429 rate_limit_exceeded      with Retry-After: the policy gives this client no more now
└── Unavailable             503 unavailable              with Retry-After
    ├── QueueFull           503 queue_full               as many requests wait for the model as it takes
    ├── WaitTooLong         503 wait_too_long            it would begin after its deadline
    ├── ModelNotReady       503 model_not_ready          it loads, or waits for its restart
    ├── WorkerLost          503 worker_lost              the model's process died or hung
    │   ├── GpuOutOfMemory  503 gpu_out_of_memory        a GPU had no room for what the model computed
    │   └── GpuLost         503 gpu_lost                 its GPU cannot be reached any more
    ├── ShuttingDown        503 shutting_down
    ├── AuditUnavailable    503 audit_unavailable
    ├── NoSpace             503 no_space
    └── DeadlineExceeded    504 deadline_exceeded       the answer was not complete in time

The message is written for the person who reads it: what is wrong and what to change. It never holds a secret, one of
our paths or prompt text. Causes for the log travel as `__cause__`.
"""

from collections.abc import Iterable
from typing import Self, TypeVar

# names that an error lists
MAX_NAMES = 20
# characters of what somebody gave that an error repeats
MAX_GIVEN = 200


class LlmdError(Exception):
    """The root: an error whose message may be shown. `param` names the request field at fault, `retry_after` is in
    seconds. `rule`: the policy's, where one forbids; the audit log alone has it."""

    status = 500
    code = "internal_error"
    kind = "server_error"
    retry_after: int | None = None
    rule = ""

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if retry_after is not None:
            self.retry_after = retry_after


Error = TypeVar("Error", bound=LlmdError)


def denied(error: Error, rule: str) -> Error:
    """That error, for a rule of the policy."""
    error.rule = rule
    return error


class BadRequest(LlmdError):
    status, code, kind = 400, "invalid_request", "invalid_request_error"


class ContextExceeded(BadRequest):
    code = "context_length_exceeded"


class ModelInvalid(BadRequest):
    code = "model_invalid"


class PolicyInvalid(BadRequest):
    code = "policy_invalid"


class SchemaUnsupported(BadRequest):
    code = "schema_unsupported"


class SchemaTooComplex(BadRequest):
    code = "schema_too_complex"


class AnswerInvalid(BadRequest):
    status, code = 422, "answer_invalid"


class RequestCrashesWorker(BadRequest):
    code = "request_crashes_worker"


class BodyTooLarge(BadRequest):
    status, code = 413, "body_too_large"


class BodyTimeout(BadRequest):
    status, code = 408, "body_timeout"


class MediaType(BadRequest):
    status, code = 415, "unsupported_media_type"


class Forbidden(LlmdError):
    status, code, kind = 403, "forbidden", "permission_error"


class ClientUnknown(Forbidden):
    code = "client_unknown"


class CertificateRevoked(Forbidden):
    code = "certificate_revoked"


class CertificateExpired(Forbidden):
    code = "certificate_expired"


class OutsideHours(Forbidden):
    code = "outside_hours"


class NotFound(LlmdError):
    status, code, kind = 404, "not_found", "invalid_request_error"

    @classmethod
    def among(cls, what: str, names: Iterable[str], *, param: str | None = None) -> Self:
        """There is no such thing, and what there is. `what`: one of them, as in `imported model`."""
        return cls(f"there is no {what} of that name; there is {listed(names)}", param=param)


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(LlmdError):
    status, code, kind = 405, "method_not_allowed", "invalid_request_error"


class Conflict(LlmdError):
    status, code, kind = 409, "conflict", "invalid_request_error"


class DoesNotFit(Conflict):
    code = "does_not_fit"


class RateLimited(LlmdError):
    """`rates`: what is left of the client's limits (`serving/quotas.py`)."""

    status, code, kind = 429, "rate_limit_exceeded", "rate_limit_error"
    retry_after = 1
    rates: object = None


class ClientTooSlow(LlmdError):
    status, code, kind = 408, "client_too_slow", "invalid_request_error"


class Unavailable(LlmdError):
    status, code = 503, "unavailable"
    retry_after = 1


class QueueFull(Unavailable):
    code = "queue_full"


class WaitTooLong(Unavailable):
    code = "wait_too_long"


class ModelNotReady(Unavailable):
    code = "model_not_ready"


class WorkerLost(Unavailable):
    code = "worker_lost"


class GpuOutOfMemory(WorkerLost):
    code = "gpu_out_of_memory"


class GpuLost(WorkerLost):
    code = "gpu_lost"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class AuditUnavailable(Unavailable):
    code = "audit_unavailable"


class NoSpace(Unavailable):
    code = "no_space"


class DeadlineExceeded(Unavailable):
    status, code = 504, "deadline_exceeded"


def _tree(root: type[LlmdError]) -> dict[str, type[LlmdError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def cut(text: str, most: int = MAX_GIVEN) -> str:
    """At most so many characters of what somebody gave; both its ends are there, which names and paths differ in."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def listed(names: Iterable[str]) -> str:
    """Of names at most MAX_NAMES, in their order; none where there is none."""
    known = sorted(names)
    more = f" and {len(known) - MAX_NAMES} more" if len(known) > MAX_NAMES else ""
    return ", ".join(known[:MAX_NAMES]) + more or "none"


def quoted(text: str, most: int) -> str:
    """A client's own words as an error repeats them: its first characters, in quotes, as they were sent but for those
    that are no printable ASCII."""
    return f"'{printable(text[:most])}'"


def printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)


def from_wire(code: str, message: str, param: str | None = None) -> LlmdError:
    """The error that a worker or job process named by `code`; an unknown code becomes the root's."""
    return _tree(LlmdError).get(code, LlmdError)(message, param=param)
