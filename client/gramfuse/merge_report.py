"""A local merge in words: its layers, and how far each model is from what came out."""

from gramfuse.local_merging import MergedModel
from gramfuse_shared.contract.diagnostics import Layer
from gramfuse_shared.reporting.layers import describe_layers, markdown_table, quantile, share


def describe_merge(merged: MergedModel) -> str:
    """Write Markdown for people. Models are named, as they are one's own folders."""
    distances: dict[str, list[float]] = {}
    for entry in merged.diagnostics:
        for label, distance in entry.get("distances", {}).items():
            distances.setdefault(label, []).append(distance)
    lines = [f"# {merged.path.name}", "", "## Layers", ""]
    lines += describe_layers([Layer.of_entry(entry) for entry in merged.diagnostics])
    if distances:
        rows = [[label, *(share(quantile(found, level)) for level in (0.5, 1.0))] for label, found in distances.items()]
        told = "How far each model is from what came out, over the layers:"
        lines += ["", "## Models", "", told, "", *markdown_table(["model", "median", "largest"], rows, right=(1, 2))]
    return "\n".join(lines) + "\n"
