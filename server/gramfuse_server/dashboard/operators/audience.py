"""What operators find."""

from typing import Final

from gramfuse_server.dashboard.audience import Audience, View
from gramfuse_server.dashboard.operators import priorities, quotas
from gramfuse_server.dashboard.operators.audit import read_audit
from gramfuse_server.dashboard.operators.contributions import read_contribution
from gramfuse_server.dashboard.operators.merges import read_job, read_model, send_receipt
from gramfuse_server.dashboard.operators.organizations import read_organizations
from gramfuse_server.dashboard.operators.overview import read_overview, send_throughput
from gramfuse_server.dashboard.operators.projects import ask_deleting, delete, read_project, read_projects
from gramfuse_server.dashboard.tokens import create_token, read_token, read_tokens, revoke_token

OPERATORS: Final = Audience(
    pages={
        "/": View("operators/overview.html", read_overview),
        "/projects": View("operators/projects.html", read_projects),
        "/projects/{project}": View("operators/project.html", read_project),
        "/projects/{project}/delete": View("project_delete.html", ask_deleting),
        "/projects/{project}/quota": View("operators/quota.html", quotas.read_quota),
        "/contributions/{project}/{contribution}": View("operators/contribution.html", read_contribution),
        "/jobs/{project}/{job}": View("job.html", read_job),
        "/jobs/{project}/{job}/priority": View("operators/priority.html", priorities.read_priority),
        "/models/{project}/{job}": View("model.html", read_model),
        "/organizations": View("operators/organizations.html", read_organizations),
        "/audit": View("operators/audit.html", read_audit),
        "/tokens": View("tokens.html", read_tokens),
        "/tokens/{token}/revoke": View("token_revoke.html", read_token),
    },
    answers={"/models/{project}/{job}/receipt.json": send_receipt, "/throughput.json": send_throughput},
    acts={
        "/projects/{project}/delete": delete,
        "/projects/{project}/quota": quotas.change,
        "/jobs/{project}/{job}/priority": priorities.change,
        "/tokens": create_token,
        "/tokens/{token}/revoke": revoke_token,
    },
)
