"""Send an answer: the document, the parts of its file that are missing, the seal."""

from gramfuse.answering.prepared import PreparedAnswer
from gramfuse.progress import OnProgress
from gramfuse.transfer.transport import Transport
from gramfuse.transfer.uploads import send_missing_parts
from gramfuse_shared.contract.http_api import AnswerInfo
from gramfuse_shared.errors import ContributionRejectedError


def send_answer(
    transport: Transport, prepared: PreparedAnswer, *, parallel: int, on_progress: OnProgress | None = None
) -> AnswerInfo:
    """Send an answer; what arrived before is not sent again.

    Raises:
        GramfuseError: what the server answers.
    """
    path = answer_path(prepared)
    given = AnswerInfo.parse(transport.call("PUT", path, json=prepared.answer.model_dump(mode="json")))
    if given.state == "open":
        send_missing_parts(transport, path, prepared.files, given.files, parallel=parallel, on_progress=on_progress)
        given = AnswerInfo.parse(transport.call("POST", f"{path}/seal"))
    return given


def answer_path(prepared: PreparedAnswer) -> str:
    """Return the path of an answer."""
    answer = prepared.answer
    return f"v1/projects/{answer.project}/requests/{answer.request}/answers/{answer.organization}"


def require_accepted_answer(given: AnswerInfo) -> AnswerInfo:
    """Require that the server's checks accepted an answer.

    Raises:
        ContributionRejectedError: they refused it; the message holds the reason.
    """
    if given.state != "accepted":
        reason = f": {given.reason}" if given.reason else ""
        msg = f"the answer is {given.state}{reason}; answer again"
        raise ContributionRejectedError(msg, state=given.state)
    return given
