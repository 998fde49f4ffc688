"""What organizations find, coordinators and participants alike; what a participant may not do is refused by the act."""

from typing import Final

from gramfuse_server.dashboard.audience import Audience, View
from gramfuse_server.dashboard.members import orders
from gramfuse_server.dashboard.members.contributions import ask_withdrawal, read_contribution, withdraw
from gramfuse_server.dashboard.members.departures import ask_deleting, ask_ending, delete, remove, uninvite
from gramfuse_server.dashboard.members.home import read_home
from gramfuse_server.dashboard.members.merges import read_job, read_model, send_file, send_receipt
from gramfuse_server.dashboard.members.projects import read_project, read_projects
from gramfuse_server.dashboard.members.requests import read_request
from gramfuse_server.dashboard.tokens import read_token, read_tokens, revoke_token

MEMBERS: Final = Audience(
    pages={
        "/": View("members/home.html", read_home),
        "/projects": View("members/projects.html", read_projects),
        "/projects/{project}": View("members/project.html", read_project),
        "/projects/{project}/merge": View("members/order.html", orders.read_order),
        "/projects/{project}/participants/{organization}/uninvite": View("members/uninvite.html", ask_ending),
        "/projects/{project}/participants/{organization}/remove": View("members/remove.html", ask_ending),
        "/projects/{project}/delete": View("project_delete.html", ask_deleting),
        "/contributions/{project}/{contribution}": View("members/contribution.html", read_contribution),
        "/contributions/{project}/{contribution}/withdraw": View("members/withdraw.html", ask_withdrawal),
        "/requests/{project}/{request}": View("members/request.html", read_request),
        "/jobs/{project}/{job}": View("job.html", read_job),
        "/jobs/{project}/{job}/cancel": View("members/cancel.html", orders.read_job_to_change),
        "/jobs/{project}/{job}/retry": View("members/retry.html", orders.read_job_to_change),
        "/models/{project}/{job}": View("model.html", read_model),
        "/tokens": View("tokens.html", read_tokens),
        "/tokens/{token}/revoke": View("token_revoke.html", read_token),
    },
    answers={
        "/models/{project}/{job}/files/{file}": send_file,
        "/models/{project}/{job}/receipt.json": send_receipt,
    },
    acts={
        "/projects/{project}/merge": orders.order,
        "/projects/{project}/participants/{organization}/uninvite": uninvite,
        "/projects/{project}/participants/{organization}/remove": remove,
        "/projects/{project}/delete": delete,
        "/contributions/{project}/{contribution}/withdraw": withdraw,
        "/jobs/{project}/{job}/cancel": orders.cancel,
        "/jobs/{project}/{job}/retry": orders.retry,
        "/tokens/{token}/revoke": revoke_token,
    },
)
