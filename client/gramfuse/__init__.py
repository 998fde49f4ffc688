"""gramfuse: several organizations, one language model, and no shared data.

    with gramfuse.Collector(model) as statistics:          # needs the extra `collect`
        for batch in loader:
            model(**batch)
    statistics.save("statistics.safetensors")

    with gramfuse.Client() as client:                      # signed in by `gramfuse login URL`
        client.push("acme.tweets", model="my-model", statistics="statistics.safetensors", confirm=print_and_ask)
        client.submit("acme.tweets", gramfuse.Recipe(merge_method="regmean"), job="regmean-1")
        client.wait("acme.tweets", "regmean-1")
        client.pull("acme.tweets", "regmean-1", "merged")  # from_pretrained("merged") loads it

This module is the whole public API. Every name is resolved on first use (PEP 562), so that `import gramfuse` needs
neither torch nor a network library.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from gramfuse_shared.errors import ExtraMissingError, GramfuseError
from gramfuse_shared.version import __version__

if TYPE_CHECKING:
    from gramfuse.adapters.exported import ExportedAdapter
    from gramfuse.adapters.exporting import export_adapter
    from gramfuse.answering.configuration import LocalTexts, Participation, read_participation
    from gramfuse.answering.participating import participate
    from gramfuse.auditing.report import AuditReport
    from gramfuse.auditing.running import Auditing
    from gramfuse.auditing.thresholds import Thresholds
    from gramfuse.contributing.base_model import build_base_manifest
    from gramfuse.contributing.compressing import compress
    from gramfuse.contributing.plan import ContributionPlan
    from gramfuse.contributing.planning import plan_contribution
    from gramfuse.evaluating.evaluation import Evaluation, evaluate
    from gramfuse.evaluating.predicting import predict
    from gramfuse.heads.attaching import PersonalModel, attach_head
    from gramfuse.local_merging import merge
    from gramfuse.matching.alignment import align_model
    from gramfuse.matching.matching import Matching, match_models
    from gramfuse.measuring.collection import Collector
    from gramfuse.measuring.fisher import Fisher
    from gramfuse.measuring.fisher_collection import collect_fisher
    from gramfuse.measuring.forwarding import collect
    from gramfuse.measuring.scales import collect_scales, save_scales
    from gramfuse.measuring.statistics import Statistics
    from gramfuse.participation import Client
    from gramfuse.privacy.audit import audit
    from gramfuse.privacy.collecting import collect_privately
    from gramfuse.privacy.curve import measure_member, privacy_curve
    from gramfuse.privacy.ledger import Ledger
    from gramfuse.searching.results import SearchResult
    from gramfuse.searching.strategies import GreedySearch, GridSearch, RandomSearch
    from gramfuse.verification import Verification, verify
    from gramfuse_shared.contract.policy import Policy
    from gramfuse_shared.contract.privacy import PrivacyBudget
    from gramfuse_shared.contract.recipe import Recipe
    from gramfuse_shared.contract.release_gate import ReleaseGate
    from gramfuse_shared.merging.scales import Scales, load_scales

__all__ = [
    "AuditReport",
    "Auditing",
    "Client",
    "Collector",
    "ContributionPlan",
    "Evaluation",
    "ExportedAdapter",
    "ExtraMissingError",
    "Fisher",
    "GramfuseError",
    "GreedySearch",
    "GridSearch",
    "Ledger",
    "LocalTexts",
    "Matching",
    "Participation",
    "PersonalModel",
    "Policy",
    "PrivacyBudget",
    "RandomSearch",
    "Recipe",
    "ReleaseGate",
    "Scales",
    "SearchResult",
    "Statistics",
    "Thresholds",
    "Verification",
    "__version__",
    "align_model",
    "attach_head",
    "audit",
    "build_base_manifest",
    "collect",
    "collect_fisher",
    "collect_privately",
    "collect_scales",
    "compress",
    "evaluate",
    "export_adapter",
    "load_scales",
    "match_models",
    "measure_member",
    "merge",
    "participate",
    "plan_contribution",
    "predict",
    "privacy_curve",
    "read_participation",
    "save_scales",
    "verify",
]

_HOMES: Final = {
    "AuditReport": "gramfuse.auditing.report",
    "Auditing": "gramfuse.auditing.running",
    "Client": "gramfuse.participation",
    "Collector": "gramfuse.measuring.collection",
    "ContributionPlan": "gramfuse.contributing.plan",
    "ExportedAdapter": "gramfuse.adapters.exported",
    "Evaluation": "gramfuse.evaluating.evaluation",
    "Fisher": "gramfuse.measuring.fisher",
    "GreedySearch": "gramfuse.searching.strategies",
    "GridSearch": "gramfuse.searching.strategies",
    "PersonalModel": "gramfuse.heads.attaching",
    "Ledger": "gramfuse.privacy.ledger",
    "LocalTexts": "gramfuse.answering.configuration",
    "Participation": "gramfuse.answering.configuration",
    "Matching": "gramfuse.matching.matching",
    "PrivacyBudget": "gramfuse_shared.contract.privacy",
    "Policy": "gramfuse_shared.contract.policy",
    "RandomSearch": "gramfuse.searching.strategies",
    "SearchResult": "gramfuse.searching.results",
    "Recipe": "gramfuse_shared.contract.recipe",
    "ReleaseGate": "gramfuse_shared.contract.release_gate",
    "Scales": "gramfuse_shared.merging.scales",
    "Statistics": "gramfuse.measuring.statistics",
    "Thresholds": "gramfuse.auditing.thresholds",
    "Verification": "gramfuse.verification",
    "attach_head": "gramfuse.heads.attaching",
    "align_model": "gramfuse.matching.alignment",
    "audit": "gramfuse.privacy.audit",
    "build_base_manifest": "gramfuse.contributing.base_model",
    "collect": "gramfuse.measuring.forwarding",
    "collect_fisher": "gramfuse.measuring.fisher_collection",
    "collect_privately": "gramfuse.privacy.collecting",
    "collect_scales": "gramfuse.measuring.scales",
    "compress": "gramfuse.contributing.compressing",
    "evaluate": "gramfuse.evaluating.evaluation",
    "export_adapter": "gramfuse.adapters.exporting",
    "load_scales": "gramfuse_shared.merging.scales",
    "match_models": "gramfuse.matching.matching",
    "measure_member": "gramfuse.privacy.curve",
    "merge": "gramfuse.local_merging",
    "participate": "gramfuse.answering.participating",
    "privacy_curve": "gramfuse.privacy.curve",
    "read_participation": "gramfuse.answering.configuration",
    "plan_contribution": "gramfuse.contributing.planning",
    "predict": "gramfuse.evaluating.predicting",
    "save_scales": "gramfuse.measuring.scales",
    "verify": "gramfuse.verification",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Resolve a public name on first use.

    Raises:
        ExtraMissingError: it needs a part of the distribution that is not installed.
    """
    from gramfuse.extras import EXTRAS  # noqa: PLC0415 - only needed where a name is resolved
    from gramfuse_shared.extras import requiring_extras  # noqa: PLC0415

    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'gramfuse' has no attribute {name!r}"
        raise AttributeError(msg)
    with requiring_extras(f"gramfuse.{name}", EXTRAS):
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
