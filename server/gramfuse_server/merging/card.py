"""The model card: what was merged, how, what each layer got, and what the model is not."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from gramfuse_server.merging.attempts import Attempt
from gramfuse_server.merging.inputs import MergeInputs
from gramfuse_server.merging.refinement import Refined
from gramfuse_shared.contract.diagnostics import DIAGNOSTICS_FILE_NAME, Layer
from gramfuse_shared.contract.privacy import COVERS
from gramfuse_shared.contract.recipe import PARAMETERS_OF, Overridable
from gramfuse_shared.contract.withholding import IN_SHORT
from gramfuse_shared.reporting.layers import describe_layers
from gramfuse_shared.version import __version__

PICTURE_FILE_NAME: Final = "diagnostics.svg"

_METHODS: Final = {
    "task_arithmetic": (
        "task arithmetic (Ilharco et al., ICLR 2023): the base and λ times the weighted sum of the contributions' "
        "differences from it"
    ),
    "ties": (
        "TIES-Merging (Yadav et al., NeurIPS 2023): the base and λ times the mean of the largest differences from it "
        "that agree with the elected sign"
    ),
    "dare_linear": (
        "DARE (Yu et al., ICML 2024): task arithmetic on a random part of each difference, scaled up for what is "
        "missing"
    ),
    "dare_ties": (
        "DARE (Yu et al., ICML 2024) with the signs elected as in TIES-Merging: a random part of each difference, "
        "scaled up for what is missing, where it agrees with the elected sign"
    ),
    "fisher": (
        "Fisher-weighted averaging (Matena and Raffel, NeurIPS 2022): every element is the mean of the contributions' "
        "own, weighted by the Fisher information that each has of it"
    ),
    "wudi": (
        "WUDI-Merging (Cheng et al., ICML 2025): from the sum of the contributions' differences from the base, each "
        "linear layer descends toward what least contradicts them on themselves; everything else the weighted mean"
    ),
    "head": (
        "ridge regression of the organizations' own logits on what the merged model gives its head to read; everything "
        "else is as it was"
    ),
    "refit": (
        "ridge regression of what the outputs of the merged model's linear layers lack to those of the organizations' "
        "own on what the layers read; everything else is as it was"
    ),
    "calibration": (
        "the biases of the head, shifted to where histograms of the model's scores on the organizations' held-out "
        "examples are best divided; everything else is as it was"
    ),
    "linear": "the weighted mean of the contributions, parameter by parameter",
    "regmean": (
        "regression mean (RegMean, Jin et al., ICLR 2023): each linear layer is the least-squares answer to all "
        "contributions' layers on their own inputs, everything else the weighted mean"
    ),
}


_LABELS: Final = {
    "sampled": "drawn from each organization's own model",
    "given": "those of the organizations' texts (the empirical Fisher information)",
}

_RIDGE_OF_MEAN: Final = "added to a Gram matrix's diagonal, times its mean"
_RIDGE: Final = {"refit": "added to each entry of a Gram matrix's diagonal, times itself"}

_MISSING: Final = {
    "average": "averaged",
    "estimate": (
        "its precision is estimated from its difference to the base (Hameed et al., arXiv 2604.01329), in the size of "
        "the measured ones"
    ),
}


def write_card(
    inputs: MergeInputs, attempt: Attempt, layers: Sequence[Layer], now: datetime, *, caption: str | None = None
) -> str:
    """Write README.md; a caption says what the picture beside it shows, None that there is none."""
    recipe = inputs.recipe
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge, gramfuse]",
        "---",
        "",
        f"# {attempt.project} · {attempt.job}",
        "",
        (
            f"Merged from {len(inputs.cohort)} organizations' models by gramfuse {__version__} on {now:%Y-%m-%d %H:%M} "
            f"UTC, attempt {attempt.number}. No organization's text took part: only weights and layer statistics."
        ),
        "",
        "## What was merged",
        "",
        "| organization | contribution | weight |",
        "|---|---|---|",
        *(
            f"| {member.organization} | `{member.contribution[:16]}…` | {_weight(member.weight)} |"
            for member in inputs.cohort
        ),
        "",
        *_refined(inputs),
        *_seen(inputs),
        f"Base model: `{inputs.base_digest}`. Policy: version {inputs.policy.version}, `{inputs.policy.digest}`.",
        "",
        "## How",
        "",
        f"`{recipe.merge_method}` ({inputs.plan.method_version}): {_METHODS[recipe.merge_method]}.",
        "",
        *_parameters(inputs),
        "",
        (
            "Config, tokenizer, and every parameter that nobody contributed are the base model's. `recipe.yaml` is the "
            "merge; `receipt.json` is the server's signed statement of inputs and outputs."
        ),
        "",
        "## Layers",
        "",
        *([f"{inputs.plan.layers}.", ""] if inputs.plan.layers else []),
        *describe_layers(layers),
        "",
        *([f"![Figures by kind of layer and layer]({PICTURE_FILE_NAME})", "", caption, ""] if caption else []),
        *([f"`{DIAGNOSTICS_FILE_NAME}` has all of it for every layer.", ""] if layers else []),
        "## Limits",
        "",
        "- Nobody had evaluated this model when it was published: measure it on your own data before you use it.",
        (
            f"- Scores that came later are in `gramfuse model report {attempt.project} {attempt.job}`, if the policy "
            "lets the coordinator ask for them."
        ),
        *([] if inputs.gate is None else [f"- The policy holds it back until evaluations say that {inputs.gate}."]),
        "- It inherits the biases and the licence of the base model and of what the organizations trained on.",
        "- Layers without statistics from every contribution are plain means or rest on estimates; see the table.",
        f"- {describe_privacy(inputs)} Whoever holds the model may learn something about the cohort.",
    ]
    return "\n".join(lines) + "\n"


def _refined(inputs: MergeInputs) -> list[str]:
    if inputs.refined is None:
        return []
    changed = {
        "head": "its head, with statistics",
        "calibration": "the biases of its head, with counts",
    }.get(inputs.recipe.merge_method, f"{len(inputs.refined.layers)} linear layers, with statistics")
    sentence = (
        f"Merged anew from `{inputs.refined.model}`: {changed} that every organization measured with that model "
        f"(request `{inputs.recipe.request}`). Everything else is its own."
    )
    return [sentence, "", *_left(inputs.refined)]


def _left(refined: Refined) -> list[str]:
    if not refined.left:
        return []
    lines = []
    for left in refined.left:
        layers = f"{len(left.layers)} linear layers" if left.layers else "all linear layers"
        whose = "; ".join(
            f"{name}: {', '.join(IN_SHORT[why] for why in found)}" for name, found in left.withheld.items()
        )
        lines.append(f"- request `{left.request}`, {layers} ({whose})")
    return ["Left as they were, because nothing of them may leave an organization:", "", *lines, ""]


def _seen(inputs: MergeInputs) -> list[str]:
    """Say what the server saw of the contributions, and whether they are signed."""
    lines = []
    if inputs.summed is not None:
        lines += [
            (
                "The server saw the sum over these organizations alone, and nobody's own weights or statistics (secure "
                f"sum `{inputs.summed.session.digest[:16]}…`)."
            ),
            "",
        ]
    if len(inputs.signatures) == len(inputs.cohort):
        lines += [
            "Every contribution is signed with its organization's identity key: `gramfuse model verify` checks that.",
            "",
        ]
    return lines


def describe_privacy(inputs: MergeInputs) -> str:
    """Say what is noised, and what is not."""
    names = {member.contribution: member.organization for member in inputs.cohort}
    noised = {
        names[contribution]: manifest.statistics.collector.noised
        for contribution, manifest in inputs.manifests.items()
        if manifest.statistics is not None and manifest.statistics.collector.noised is not None
    }
    if not noised:
        return "The merge is not differentially private."
    told = ", ".join(f"{name} ({noise.budget})" for name, noise in sorted(noised.items()))
    return (
        f"Gram matrices were noised by their organizations, as they say: {told}. {COVERS}: these are not "
        "differentially private, and nobody can check the noise."
    )


def _parameters(inputs: MergeInputs) -> list[str]:
    recipe, parameters = inputs.recipe, inputs.recipe.parameters
    rows = "examples" if recipe.merge_method == "fisher" else "rows"
    counted = {
        "equal": "organizations count alike",
        "rows": f"organizations count by their {rows}",
        "norm": "each organization's Fisher information is divided by its norm",
        "parameter_norm": "each organization's Fisher information of a parameter is divided by its norm",
    }
    told = {
        "alpha": f"α (share of a Gram matrix's off-diagonal): {_weight(parameters.alpha)}",
        "ridge": f"ridge ({_RIDGE.get(recipe.merge_method, _RIDGE_OF_MEAN)}): {_weight(parameters.ridge)}",
        "normalize": f"normalisation: {parameters.normalize}, {counted[parameters.normalize]}",
        "missing_statistics": (
            f"linear layers of which a contribution lacks statistics: {_MISSING[parameters.missing_statistics]}"
        ),
        "lambda": f"λ (what is added to the base, times): {_weight(parameters.lambda_)}",
        "density": f"density (share of each difference that is kept): {_weight(parameters.density)}",
        "seed": f"seed of what is left to chance: {parameters.seed}",
    }
    lines = [f"- {told[parameter]}" for parameter in PARAMETERS_OF[recipe.merge_method]]
    if recipe.merge_method == "fisher":
        kinds = {member.fisher.collector.labels for member in inputs.manifests.values() if member.fisher is not None}
        lines += [f"- labels of the Fisher information: {_LABELS[kind]}" for kind in sorted(kinds)]
    if recipe.parameters.exclude:
        lines.append(f"- excluded, so the base's: {', '.join(f'`{name}`' for name in recipe.parameters.exclude)}")
    lines.append(f"- written as {recipe.out_dtype or 'the base stores it'}")
    return lines


def _weight(value: Overridable) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(f"{conditional.value:g} for `{conditional.filter or '*'}`" for conditional in value)
