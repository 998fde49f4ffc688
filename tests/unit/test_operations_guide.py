"""The guides of operators: their commands parse, their figures follow from formulas, what they name exists."""

import json
import re
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from gramfuse.cli.main import app
from gramfuse_server.commands import command
from gramfuse_server.settings import Settings, parse_duration
from gramfuse_shared import limits
from gramfuse_shared.contract.manifest import TensorInfo
from gramfuse_shared.contract.statistics_file import packed_length

ROOT = Path(__file__).parents[2]
GUIDES = {name: (ROOT / "docs" / name).read_text() for name in ("operations.md", "deployment.md")}
PROGRAMS = {"gramfuse": get_command(app), "gramfuse-server": command()}
SPOKEN = re.compile(r"`((?:gramfuse|gramfuse-server) [^`]+)`")
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command line of ours, in blocks and in sentences, within containers too, without what the shell adds."""
    found = []
    for text in GUIDES.values():
        lines = [line for block in BLOCK.findall(text) for line in block.splitlines()] + SPOKEN.findall(text)
        for line in lines:
            ours = re.search(r"(?:^|\s)(gramfuse(?:-server)? [a-z][^#>&]*)", line)
            if ours and "…" not in line and "pip install" not in line:
                found.append(ours[1].strip())
    return sorted(set(found))


def require_parses(line: str) -> None:
    """Have the real command line take the words, down to the last subcommand, without running anything."""
    program, *arguments = shlex.split(line)
    command = PROGRAMS[program]
    context = command.make_context(program, arguments, ignore_unknown_options=False)
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        if not arguments:
            return  # a sentence names the command and no more
        context = command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_guides_parses(line):
    require_parses(line.replace("DATE", "2026-11-27"))


@pytest.mark.parametrize(
    "line",
    ["gramfuse-server token frob", "gramfuse-server frob", "gramfuse job list P --frob", "gramfuse job cancel P"],
)
def test_a_command_that_does_not_exist_or_lacks_an_argument_does_not_parse(line):
    with pytest.raises(Exception, match=r"(?i)missing|no such"):
        require_parses(line)


def test_the_guides_name_only_settings_alerts_and_tests_that_exist():
    known = {f"GRAMFUSE_{name.upper()}" for name in Settings.model_fields}
    compose = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    clients = {"GRAMFUSE_HOME", "GRAMFUSE_URL", "GRAMFUSE_TOKEN"}
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    for name, text in GUIDES.items():
        assert set(re.findall(r"GRAMFUSE_[A-Z0-9_]*[A-Z0-9]", text)) <= known | compose | clients, name
        assert set(re.findall(r"`(Gramfuse\w+)`", text)) <= alerts, name
        for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
            assert (ROOT / path).exists(), path


def test_the_list_of_settings_is_whole_and_has_their_defaults():
    section = GUIDES["operations.md"].partition("## Settings\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(GRAMFUSE_\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    assert set(told) == {f"GRAMFUSE_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        written = told[f"GRAMFUSE_{name.upper()}"].strip("`")
        if isinstance(field.default, timedelta):
            assert parse_duration(written) == field.default, name
        elif isinstance(field.default, bool):
            assert written == {False: "off", True: "on"}[field.default], name
        elif isinstance(field.default, int | float):
            assert float(written) == field.default, name
        elif isinstance(field.default, str) and field.default:
            assert written == field.default, name


# --- sizing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """What the table's columns are of: parameters, bytes of each, layers, the widths of a layer's taps."""

    parameters: int
    bytes_each: int
    layers: int
    widths: tuple[int, ...]

    @property
    def weights(self) -> int:
        return self.parameters * self.bytes_each

    @property
    def statistics(self) -> int:
        return 4 * self.layers * sum(map(packed_length, self.widths))

    @property
    def int16(self) -> int:
        return self.layers * sum(2 * packed_length(width) + 4 * width for width in self.widths)

    @property
    def contribution(self) -> int:
        return self.weights + self.statistics


def bert(hidden: int, layers: int) -> Architecture:
    """Embeddings of 30,522 words, 512 positions and 2 types, the layers, a pooler."""
    inner = 4 * hidden
    embeddings = (30_522 + 512 + 2) * hidden + 2 * hidden
    layer = 4 * (hidden * hidden + hidden) + (hidden * inner + inner) + (inner * hidden + hidden) + 4 * hidden
    pooler = hidden * hidden + hidden
    return Architecture(embeddings + layers * layer + pooler, 4, layers, (hidden, hidden, hidden, inner))


def llama(hidden: int, layers: int, inner: int, words: int) -> Architecture:
    layer = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    return Architecture(2 * words * hidden + layers * layer + hidden, 2, layers, (hidden, hidden, hidden, inner))


ARCHITECTURES = (bert(384, 6), bert(768, 12), llama(4096, 32, 11_008, 32_000))


def row(label: str) -> list[str]:
    (line,) = [line for line in GUIDES["operations.md"].splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def told(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def test_the_parameters_of_the_table_are_those_of_the_models():
    """As transformers counts those of BertModel(BertConfig()) and LlamaForCausalLM(LlamaConfig())."""
    assert [found.parameters for found in ARCHITECTURES[1:]] == [109_482_240, 6_738_415_616]
    assert row("parameters") == [
        f"{ARCHITECTURES[0].parameters / 1e6:.1f} M",
        *(f"{found.parameters / 1e6:,.0f} M" for found in ARCHITECTURES[1:]),
    ]


def test_the_bytes_of_the_table_follow_from_the_formats():
    assert row("weights") == [told(found.weights) for found in ARCHITECTURES]
    assert row("statistics") == [told(found.statistics) for found in ARCHITECTURES]
    assert row("the same as int16") == [told(found.int16) for found in ARCHITECTURES]
    assert row("a contribution, lossless") == [told(found.contribution) for found in ARCHITECTURES]


def test_parts_store_and_shards_of_the_table_follow_from_the_bytes():
    part = limits.DEFAULT_PART_BYTES
    assert row("rows of parts") == [
        f"{-(-found.weights // part) + -(-found.statistics // part):,}" for found in ARCHITECTURES
    ]
    assert row("blob store for four") == [
        f"{(4 * found.contribution + 2 * found.weights) / 1e9:.1f} GB" for found in ARCHITECTURES
    ]
    shard = Settings.model_fields["shard_bytes"].default
    assert row("files of a merged model") == [str(-(-found.weights // shard)) for found in ARCHITECTURES]


def test_what_the_text_says_of_memory_and_manifests_follows_from_the_settings():
    text = GUIDES["operations.md"]
    parts = Settings.model_fields["concurrent_parts"].default
    assert f"{parts} × 16 MiB, {parts * limits.DEFAULT_PART_BYTES // limits.MIB} MiB" in text
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(32) for _ in range(9)]
    entries = [TensorInfo(name=name, dtype="BF16", shape=(4096, 11008)).model_dump(mode="json") for name in names]
    assert len(json.dumps(entries)) / len(entries) == pytest.approx(100, rel=0.25)
    measured = json.loads((ROOT / "benchmarks" / "results" / "latest.json").read_text())["merge"]["working_set_mb"]
    assert {f"{measured[members] / 1000:.1f} GB at BERT-base's shapes" for members in ("n2", "n16")} == {
        "0.2 GB at BERT-base's shapes"
    }
    assert "0.2 GB at BERT-base's shapes for 2 and for 16" in text
    assert "2.85 GB" in (ROOT / "docs" / "performance.md").read_text()
