"""Every error that crosses a border: one class and one stable code per cause.

The server answers the code in an RFC 9457 problem document; the SDK raises the class of that code again. The
raiser decides whether trying again can help (`retryable`), so no caller has to guess from a status.
"""

from typing import Any, ClassVar


class GramfuseError(Exception):
    """Base of all errors with a stable code.

    Attributes:
        code: stable identifier, the same on both sides of the wire.
        status: HTTP status with which the server answers it.
        title: the cause in a few words, the same for every occurrence.
        retryable: whether the same call may succeed later without a change.
        facts: machine-readable details of this occurrence (JSON values only).
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **facts: Any) -> None:  # noqa: ANN401 - any JSON value is a fact
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - the signature that Python gives it
        super().__init_subclass__(**kwargs)
        other = _CLASSES.setdefault(cls.code, cls)
        if other is not cls:
            msg = f"error code {cls.code!r} belongs to {other.__name__}, {cls.__name__} needs its own"
            raise TypeError(msg)


_CLASSES: dict[str, type[GramfuseError]] = {GramfuseError.code: GramfuseError}


def error_class(code: str) -> type[GramfuseError]:
    """Return the class of a code; an unknown code (a newer server's) is the base class."""
    return _CLASSES.get(code, GramfuseError)


# --- what a file or a document says is wrong -------------------------------------------------------------------


class DocumentMalformedError(GramfuseError):
    """A document does not follow its schema."""

    code = "document-malformed"
    status = 422
    title = "The document does not follow its schema"


class HeaderMalformedError(GramfuseError):
    """A safetensors header breaks the format: length, JSON, duplicate keys, holes, overlaps, shapes."""

    code = "header-malformed"
    status = 422
    title = "Not a well-formed safetensors file"


class HeaderTooLargeError(GramfuseError):
    """A safetensors header is larger than any real model's."""

    code = "header-too-large"
    status = 422
    title = "The safetensors header is too large"


class StatisticsMalformedError(GramfuseError):
    """A statistics file's metadata and tensors do not fit together."""

    code = "statistics-malformed"
    status = 422
    title = "Not a well-formed statistics file"


class StatisticsInvalidError(GramfuseError):
    """Statistics are not a Gram matrix of anything: not finite, asymmetric or indefinite."""

    code = "statistics-invalid"
    status = 422
    title = "The statistics are not numerically valid"


class ScalesMalformedError(GramfuseError):
    """A scales file's metadata, tensors or values are not what such a file holds."""

    code = "scales-malformed"
    status = 422
    title = "Not a well-formed scales file"


class WeightsInvalidError(GramfuseError):
    """Weights hold NaN or infinity."""

    code = "weights-invalid"
    status = 422
    title = "The weights are not finite"


class ArchitectureMismatchError(GramfuseError):
    """Names, shapes or dtypes differ from the project's base model, or among the models of a merge."""

    code = "architecture-mismatch"
    status = 422
    title = "The model does not match the base model"


class RecipeInvalidError(GramfuseError):
    """A recipe asks for what cannot be computed from the given models."""

    code = "recipe-invalid"
    status = 422
    title = "The recipe cannot be carried out"


class FileUnreadableError(GramfuseError):
    """A local file is missing or cannot be read."""

    code = "file-unreadable"
    status = 422
    title = "A file cannot be read"


class FileUnwritableError(GramfuseError):
    """A local file cannot be written: the disk is full, or the folder is not writable."""

    code = "file-unwritable"
    status = 507
    title = "A file cannot be written"


# --- uploads ---------------------------------------------------------------------------------------------------


class DigestMismatchError(GramfuseError):
    """Bytes do not have the announced SHA-256."""

    code = "digest-mismatch"
    status = 422
    title = "The bytes do not match their digest"
    retryable = True


class PartOutOfRangeError(GramfuseError):
    """A part's number or length lies outside of the announced file."""

    code = "part-out-of-range"
    status = 422
    title = "The part does not belong to the file"


class PartsMissingError(GramfuseError):
    """A seal came before every part had arrived."""

    code = "parts-missing"
    status = 409
    title = "Parts are missing"


class AuditMissingError(GramfuseError):
    """A seal came before the summary of the audit that the project's policy shares."""

    code = "audit-missing"
    status = 409
    title = "The audit's summary is missing"


class TooLargeError(GramfuseError):
    """A body, a document or a file is over its limit."""

    code = "too-large"
    status = 413
    title = "Larger than the limit"


class LengthRequiredError(GramfuseError):
    """A part came without its length, so it cannot be refused before it is read."""

    code = "length-required"
    status = 411
    title = "The body's length must be announced"


class QuotaExceededError(GramfuseError):
    """A project or organization would exceed what it may store."""

    code = "quota-exceeded"
    status = 413
    title = "The quota is used up"


class StorageFullError(GramfuseError):
    """The server's disk is full. What was sent so far stays; sending goes on once its operator has made room."""

    code = "storage-full"
    status = 507
    title = "The server has no room left"


class FileLostError(GramfuseError):
    """The server's blob store does not hold a file that was accepted, or not as it was. Its operator has to look."""

    code = "file-lost"
    status = 500
    title = "The server has lost a file"


# --- policy ----------------------------------------------------------------------------------------------------


class PolicyViolationError(GramfuseError):
    """Something would leave or be merged that the project's policy forbids."""

    code = "policy-violation"
    status = 422
    title = "The project's policy forbids this"


class PolicyNotAcceptedError(GramfuseError):
    """The organization has not accepted the project's current policy."""

    code = "policy-not-accepted"
    status = 409
    title = "The current policy is not accepted"


class PrivacyBudgetExceededError(GramfuseError):
    """A release would spend more of differential privacy's budget than the policy gives. Raised by the client only."""

    code = "privacy-budget-exceeded"
    status = 409
    title = "The privacy budget is used up"


class CohortFrozenError(GramfuseError):
    """A merge would, together with an earlier one, reveal a member of its cohort."""

    code = "cohort-frozen"
    status = 409
    title = "The cohort is frozen by an earlier release"


class ModelNotReleasedError(GramfuseError):
    """A merged model has not passed the release gate of its policy yet."""

    code = "model-not-released"
    status = 409
    title = "The model is not released yet"


# --- who may do what -------------------------------------------------------------------------------------------


class UnauthenticatedError(GramfuseError):
    """No token, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401
    title = "A valid token is needed"


class RoleRequiredError(GramfuseError):
    """The token is valid but its role does not carry this right, on a thing the caller may know of."""

    code = "role-required"
    status = 403
    title = "The token's role does not allow this"


class NotFoundError(GramfuseError):
    """There is no such thing, or the caller may not know of it."""

    code = "not-found"
    status = 404
    title = "Not found"


class ConflictError(GramfuseError):
    """The same identifier already stands for something else."""

    code = "conflict"
    status = 409
    title = "Conflicts with what exists"


class StateError(GramfuseError):
    """The action is not possible in the present state."""

    code = "wrong-state"
    status = 409
    title = "Not possible in the present state"


# --- the wire --------------------------------------------------------------------------------------------------


class RequestMalformedError(GramfuseError):
    """A request's path, query, header or body does not follow the API description."""

    code = "request-malformed"
    status = 422
    title = "The request does not follow the API description"


class HeadTooLargeError(GramfuseError):
    """A request's path and headers are over their limit."""

    code = "head-too-large"
    status = 431
    title = "The request's head is too large"


class TooSlowError(GramfuseError):
    """A request did not arrive in time."""

    code = "too-slow"
    status = 408
    title = "The request did not arrive in time"
    retryable = True


class TooManyRequestsError(GramfuseError):
    """A token, or an address, asks more often than it may; the answer says when to try again."""

    code = "too-many-requests"
    status = 429
    title = "Too many requests"
    retryable = True


class EncodingUnsupportedError(GramfuseError):
    """A body is compressed; none is read, so that none can grow."""

    code = "encoding-unsupported"
    status = 415
    title = "Bodies are not read compressed"


class MethodNotAllowedError(GramfuseError):
    """The path exists, the method does not."""

    code = "method-not-allowed"
    status = 405
    title = "Method not allowed"


class RangeNotSatisfiableError(GramfuseError):
    """A byte range lies outside of the file."""

    code = "range-not-satisfiable"
    status = 416
    title = "The range lies outside of the file"


class UnavailableError(GramfuseError):
    """A part of the service does not answer at present."""

    code = "unavailable"
    status = 503
    title = "The service is not ready"
    retryable = True


class TransportError(GramfuseError):
    """The server could not be reached, or the connection broke."""

    code = "transport"
    status = 502
    title = "The server could not be reached"
    retryable = True


class ReceiptInvalidError(GramfuseError):
    """A model's receipt is not signed by the pinned key or does not describe the files."""

    code = "receipt-invalid"
    status = 422
    title = "The receipt does not verify"


class SignatureInvalidError(GramfuseError):
    """Something is not signed by the identity key of the organization that it names."""

    code = "signature-invalid"
    status = 422
    title = "The signature is wrong"


class IdentityChangedError(GramfuseError):
    """An organization's identity key is another than the one that is registered, or than the one verified here."""

    code = "identity-changed"
    status = 409
    title = "The identity key is another one"


class SecureSessionRefusedError(GramfuseError):
    """A session of secure aggregation would reveal a member, or its messages do not belong together."""

    code = "secure-session-refused"
    status = 409
    title = "The secure session was refused"


class ValueOutOfBoundsError(GramfuseError):
    """A number is not finite, or over the bound up to which a secure session sums."""

    code = "value-out-of-bounds"
    status = 422
    title = "A value is over its bound"


class AuditRefusedError(GramfuseError):
    """An attack on what would leave finds more than the caller allows."""

    code = "audit-refused"
    status = 403
    title = "The audit refuses what would leave"


class CancelledError(GramfuseError):
    """The work was cancelled at a task boundary."""

    code = "cancelled"
    status = 409
    title = "Cancelled"


class JobFailedError(GramfuseError):
    """A job ended without a model."""

    code = "job-failed"
    status = 409
    title = "The job did not succeed"


class RequestFailedError(GramfuseError):
    """A request ended without the answers that it needs."""

    code = "request-failed"
    status = 409
    title = "The request was not answered in time"


class ContributionRejectedError(GramfuseError):
    """The worker's checks refused a contribution; the message holds its reason."""

    code = "contribution-rejected"
    status = 409
    title = "The contribution was rejected"


class NotConfirmedError(GramfuseError):
    """Something irreversible was not confirmed, so it was not done. Raised by the client only."""

    code = "not-confirmed"
    status = 409
    title = "Not confirmed"


class WiringChangedError(GramfuseError):
    """Linear layers that shared their inputs in one forward pass do not in another. Raised by the collector only."""

    code = "wiring-changed"
    status = 409
    title = "Layers share their inputs otherwise than before"


class ExtraMissingError(GramfuseError):
    """A feature needs an optional part of the distribution that is not installed."""

    code = "extra-missing"
    status = 501
    title = "An optional part is not installed"


class ConfigurationError(GramfuseError):
    """A setting is missing, contradictory or unsafe."""

    code = "configuration"
    status = 500
    title = "The configuration does not work"


class AuditChainBrokenError(GramfuseError):
    """A row of the audit log was edited, removed or reordered."""

    code = "audit-chain-broken"
    status = 500
    title = "The audit log's chain is broken"
