"""The command line: exit codes, one line per error, JSON on request, and no question where nobody can answer."""

import base64
import io
import json
import re

import pytest
from rich.console import Console

from gramfuse.cli import main as cli
from gramfuse.cli import output, session
from gramfuse.cli.asking import is_confirmed
from gramfuse.cli.jobs import choose_recipe
from gramfuse.cli.policies import read_policy
from gramfuse.contributing.plan import ContributionPlan, TapDecision, TensorDecision
from gramfuse.naming import name_patterns
from gramfuse_shared import errors
from gramfuse_shared.contract.manifest import LayerInfo, TapInfo, TensorInfo
from gramfuse_shared.contract.policy import Policy
from gramfuse_shared.errors import GramfuseError
from gramfuse_shared.reporting.policies import describe_policy
from gramfuse_shared.units import format_bytes

SECRET = "gf_ab12_verysecret"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAMFUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    output.reset_format()
    for name in ("GRAMFUSE_URL", "GRAMFUSE_TOKEN", "GRAMFUSE_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.PolicyViolationError, 3),
        (errors.PolicyNotAcceptedError, 3),
        (errors.CohortFrozenError, 3),
        (errors.NotConfirmedError, 3),
        (errors.TransportError, 4),
        (errors.UnavailableError, 4),
        (errors.JobFailedError, 5),
        (errors.CancelledError, 5),
        (errors.NotFoundError, 1),
        (errors.ExtraMissingError, 1),
        (GramfuseError, 1),
    ],
)
def test_each_error_has_its_documented_exit_code(kind, code, capsys):
    assert output.report_error(kind("it is\nso", tensor="a")) == code
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == f"error[{kind.code}]: it is so"


def test_the_exit_codes_are_in_the_help(capsys):
    assert cli.main(["--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for words in ("2 wrong usage", "3 refused by the policy", "4 the server cannot be reached", "5 the job", "130"):
        assert words in text


def commands(command=None, path=()):
    """Yield the words of every command that does something, with the command."""
    children = getattr(command, "commands", {}) if path else {name: cli.load_command(name) for name in cli.COMMANDS}
    for name, child in children.items():
        yield from commands(child, (*path, name))
    if not children:
        yield path, command


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_takes_format_and_shows_an_example(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--format" in text
    assert f"gramfuse {' '.join(words)}" in " ".join(text[text.index("Example") :].split())


@pytest.mark.parametrize("arguments", [["nonsense"], ["job"], ["env", "--format", "xml"], ["project", "show"]])
def test_wrong_usage_exits_with_two(arguments, capsys):
    assert cli.main(arguments) == 2


@pytest.mark.parametrize("arguments", [["--format", "json", "env"], ["env", "--format", "json"]])
def test_the_format_is_a_global_option_and_one_of_each_command(arguments, capsys):
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["gramfuse"]


def test_the_format_of_one_command_line_does_not_last(capsys):
    cli.main(["env", "--format", "json"])
    capsys.readouterr()
    cli.main(["env"])
    assert not capsys.readouterr().out.startswith("{")


def test_env_masks_the_token(monkeypatch, capsys):
    monkeypatch.setenv("GRAMFUSE_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("GRAMFUSE_TOKEN", SECRET)
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert "verysecret" not in out
    assert "gf_ab12_…" in out


def test_without_a_server_the_next_step_is_login(capsys):
    assert cli.main(["whoami"]) == 1
    assert "gramfuse login" in capsys.readouterr().err


def test_http_to_another_machine_is_refused_before_a_connection_is_opened(capsys):
    assert cli.main(["login", "http://merge.example.org", "--token", SECRET]) == 1
    captured = capsys.readouterr()
    assert "error[configuration]: http://merge.example.org would send the token in the clear" in captured.err
    assert "verysecret" not in captured.err + captured.out


def test_the_connections_options_may_stand_behind_the_command_too(monkeypatch):
    chosen = []

    def nobody() -> None:
        chosen.append(session.options())
        raise errors.UnauthenticatedError("nobody")

    monkeypatch.setattr("gramfuse.cli.session.open_client", nobody)
    options = ["--url", "http://merge.example.org", "--allow-http"]
    for arguments in (["whoami", *options], [*options, "whoami"], ["project", "list", *options], ["whoami"]):
        assert cli.main(arguments) == 1
    asked = session.Options("http://merge.example.org", allow_http=True)
    assert chosen == [asked, asked, asked, session.Options()]


def test_signing_in_over_http_goes_by_the_advice_that_the_refusal_gives(monkeypatch, capsys):
    monkeypatch.setattr("gramfuse.transfer.transport.RetryRule.delay", lambda *_, **__: 0.0)
    monkeypatch.setattr("gramfuse.config.is_loopback", lambda _: False)
    assert cli.main(["login", "http://127.0.0.1:9", "--token", SECRET]) == 1
    assert "--allow-http" in capsys.readouterr().err
    assert cli.main(["login", "http://127.0.0.1:9", "--allow-http", "--token", SECRET]) == 4


def test_a_server_that_is_not_there_exits_with_four(monkeypatch, capsys):
    monkeypatch.setenv("GRAMFUSE_TOKEN", SECRET)
    monkeypatch.setattr("gramfuse.transfer.transport.RetryRule.delay", lambda *_, **__: 0.0)
    assert cli.main(["--url", "http://127.0.0.1:9", "whoami"]) == 4
    err = capsys.readouterr().err
    assert err.startswith("error[transport]:")
    assert "resumes" in err


def test_errors_are_json_where_json_was_asked_for(capsys):
    assert cli.main(["whoami", "--format", "json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["code"] == "configuration"


def test_an_interrupt_exits_with_130_and_says_that_a_rerun_resumes(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gramfuse.cli.session.open_client", interrupted)
    assert cli.main(["whoami"]) == 130
    assert "resumes" in capsys.readouterr().err


def test_login_without_a_terminal_asks_for_the_token_on_standard_input(capsys):
    assert cli.main(["login", "http://127.0.0.1:9"]) == 3
    assert "--token -" in capsys.readouterr().err


def test_without_a_terminal_a_question_is_a_refusal_that_names_the_option():
    with pytest.raises(errors.NotConfirmedError, match="Give --yes"):
        is_confirmed("Send it?", yes=False)
    assert is_confirmed("Send it?", yes=True)


@pytest.mark.parametrize(
    ("typed", "answer"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_at_a_terminal_only_a_yes_is_a_yes(monkeypatch, typed, answer):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert is_confirmed("Send it?", yes=False) is answer


def test_a_command_whose_extra_is_missing_names_the_install_command(monkeypatch, capsys):
    def without_torch(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli.importlib, "import_module", without_torch)
    assert cli.main(["stats", "collect"]) == 1
    assert 'pip install ".[collect]"' in capsys.readouterr().err


def test_a_fault_of_our_own_is_not_disguised_as_a_missing_extra(monkeypatch):
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'gramfuse.nothing'", name="gramfuse.nothing")

    monkeypatch.setattr(cli.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["stats"])


# --- recipes and policies --------------------------------------------------------------------------------------------


def test_a_method_and_alpha_make_a_recipe():
    recipe = choose_recipe(None, "regmean", 0.5)
    assert (recipe.merge_method, recipe.parameters.alpha) == ("regmean", 0.5)
    assert choose_recipe(None, "linear", None).merge_method == "linear"


@pytest.mark.parametrize(("method", "alpha"), [("magic", None), ("regmean", 1.5), ("regmean", float("nan"))])
def test_a_recipe_that_cannot_be_is_refused(method, alpha):
    with pytest.raises(errors.RecipeInvalidError):
        choose_recipe(None, method, alpha)


def test_a_recipe_comes_from_a_file_or_a_method_but_not_both(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("merge_method: regmean\nparameters:\n  alpha: 0.7\n")
    assert choose_recipe(path, None, None).parameters.alpha == 0.7
    for arguments in ((path, "linear", None), (None, None, None), (path, None, 0.5)):
        with pytest.raises(errors.ConfigurationError):
            choose_recipe(*arguments)


def test_a_model_and_a_request_about_it_make_a_recipe_that_merges_the_model_anew(tmp_path):
    recipe = choose_recipe(None, "head", None, anew="regmean-1", request="head-1")
    assert (recipe.merge_method, recipe.base_model, recipe.request) == ("head", "regmean-1", "head-1")
    path = tmp_path / "recipe.yaml"
    path.write_text("merge_method: regmean\n")
    for arguments in (
        (None, "head", {"anew": "m"}),
        (None, "head", {"request": "r"}),
        (path, None, {"anew": "m", "request": "r"}),
    ):
        with pytest.raises(errors.ConfigurationError, match="--anew"):
            choose_recipe(*arguments[:2], None, **arguments[2])


def test_a_policy_is_read_from_yaml_and_a_typo_is_named(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("heads: shared\nminimum_cohort: 4\n")
    assert read_policy(path) == Policy(heads="shared", minimum_cohort=4)
    path.write_text("heds: shared\n")
    with pytest.raises(errors.DocumentMalformedError, match="heds"):
        read_policy(path)


@pytest.mark.parametrize(
    ("written", "in_vain"),
    [
        ("requests: [evaluate, gram]", []),
        ("heads: shared\nmethods: [regmean, head]\nrequests: [head]", []),
        ("heads: shared\nrequests: [evaluate, head, refit]", ["head", "refit"]),
        ("methods: [regmean, calibration]\nrequests: [calibration]", ["calibration"]),
    ],
)
def test_requests_that_a_policy_names_in_vain_are_warned_of_before_anybody_accepts_it(
    tmp_path, capsys, written, in_vain
):
    path = tmp_path / "policy.yaml"
    path.write_text(written + "\n")
    read_policy(path)
    told = " ".join(capsys.readouterr().err.split())
    assert re.findall(r"nobody can be asked for (\w+)", told) == in_vain


def test_an_unsafe_rule_is_called_unsafe_before_it_is_accepted():
    assert not any("UNSAFE" in sentence for sentence in describe_policy(Policy()))
    unsafe = Policy(embeddings="average", embedding_taps="send", cohorts="open")
    assert sum("UNSAFE" in sentence for sentence in describe_policy(unsafe)) == 3
    assert any("at least 7 organizations" in sentence for sentence in describe_policy(Policy(minimum_cohort=7)))
    assert not any("own labels" in sentence for sentence in describe_policy(Policy(given_labels="send")))
    for rule, words in (("withhold", "not with your texts' own"), ("send", "tells how your model does on these texts")):
        told = describe_policy(Policy(methods=("fisher",), given_labels=rule))
        assert any(words in sentence for sentence in told)
    estimating = describe_policy(Policy(missing_statistics="estimate"))
    assert any("the merged model is close to your own" in sentence for sentence in estimating)


# --- what leaves, in words -------------------------------------------------------------------------------------------


def test_names_that_differ_in_layer_numbers_are_folded():
    names = ["layer.0.a", "layer.1.a", "layer.2.a", "head.b"]
    assert name_patterns(names) == ["layer.*.a × 3", "head.b"]


def test_every_tensor_and_tap_is_told_with_its_fate_and_reason():
    def weight(name: str, role, reason=None) -> TensorDecision:
        return TensorDecision(TensorInfo(name=name, dtype="F32", shape=(10, 10)), role, reason)

    tap = TapInfo(
        name="layer.0.in", width=8, rows=9, distinct_rows=9, source="mixed", layers=(LayerInfo(weight="layer.0.w"),)
    )
    plan = ContributionPlan(
        weights=(weight("layer.0.w", "body"), weight("layer.1.w", "body"), weight("emb.w", "embedding", "they stay")),
        taps=(TapDecision(tap, None), TapDecision(tap.model_copy(update={"name": "emb.in"}), "it reveals")),
        warnings=("take care",),
    )
    text = str(plan)
    leaves, stays = text.split("Stays here:")
    assert "layer.*.w × 2" in leaves
    assert "weights.safetensors, 800 B" in leaves
    assert "statistics.safetensors" in leaves
    assert "layer.0.in" in leaves
    assert "embeddings (1, 400 B): they stay" in stays
    assert "it reveals" in stays
    assert "emb.in" in stays
    assert "Warning: take care" in stays


def test_a_row_that_a_narrow_terminal_cannot_show_becomes_two_lines(capsys):
    render = output.table(("model", "method", "size"), [("a" * 30, "regmean", "9 MB")], right=(2,))
    render(Console(width=30, force_terminal=True, color_system=None))
    assert capsys.readouterr().out == f"{'a' * 30}\n    method regmean · size 9 MB\n"
    render(Console(width=30))  # a pipe
    assert [len(line.split()) for line in capsys.readouterr().out.splitlines()] == [3, 4]


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (9_310_000, "9.31 MB"), (4e12, "4 TB")])
def test_sizes_have_three_digits(count, text):
    assert format_bytes(count) == text


def test_verify_names_the_model_and_its_signer(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    assert cli.main(["model", "verify", str(tmp_path / "m"), "--key", base64.b64encode(bytes(32)).decode()]) == 1
    assert "error[file-unreadable]" in capsys.readouterr().err


def test_the_policy_in_words_says_who_can_work_out_anothers_model():
    two, three = (describe_policy(Policy(minimum_cohort=least)) for least in (2, 3))
    assert (
        "A merge takes at least 2 organizations: of two, each can subtract its own model from the merge, and has"
        in (" ".join(two))
    )
    assert "at least 3 organizations; all but one of a merge's members together can subtract theirs" in " ".join(three)
