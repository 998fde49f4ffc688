"""The client's home: masked tokens, private files, and which server is meant."""

import json
import stat

import pytest

from gramfuse.config import Home, Token, is_loopback, normalize_url, require_token
from gramfuse_shared.errors import ConfigurationError, UnauthenticatedError

URL = "https://merge.example.org"
SECRET = "gf_ab12_verysecretverysecret"


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize("text", [SECRET, "no-known-form-at-all", "gf_onlyone"])
def test_a_token_shows_at_most_its_id(text):
    token = Token(text)
    shown = f"{token} {token!r} {[token]} {{'t': {token}}}"
    assert text not in shown
    assert "verysecret" not in shown
    assert token.reveal() == text


@pytest.mark.parametrize("text", ["", "  ", "two words", "line\nbreak", "naïve"])
def test_what_cannot_be_a_token_is_refused_before_it_reaches_a_header(text):
    with pytest.raises(ConfigurationError):
        Token(text)


def test_credentials_are_readable_by_their_owner_only_and_leave_nothing_beside(home):
    home.save_credentials(URL, Token(SECRET))
    path = home.path / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [entry.name for entry in home.path.iterdir()] == ["credentials.json"]


def test_the_server_signed_in_to_last_is_the_default_and_others_keep_their_tokens(home):
    home.save_credentials(URL, Token(SECRET))
    home.save_credentials("https://other.example.org", Token("gf_cd34_other"))
    assert home.endpoint(environment={}).url == "https://other.example.org"
    assert home.endpoint(URL + "/", environment={}).token == Token(SECRET)


def test_the_argument_comes_before_the_environment_and_that_before_what_was_kept(home):
    home.save_credentials(URL, Token(SECRET))
    environment = {"GRAMFUSE_URL": "http://127.0.0.1:8080/", "GRAMFUSE_TOKEN": "gf_env_x"}
    chosen = home.endpoint(environment=environment)
    assert (chosen.url, chosen.token) == ("http://127.0.0.1:8080", Token("gf_env_x"))
    assert home.endpoint("https://third.example.org", "gf_arg_x", environment=environment).token == Token("gf_arg_x")


def test_without_a_server_or_a_token_the_next_step_is_named(home):
    with pytest.raises(ConfigurationError, match="gramfuse login"):
        home.endpoint(environment={})
    with pytest.raises(UnauthenticatedError, match=r"merge\.example\.org"):
        require_token(home.endpoint(URL, environment={}))


def test_broken_credentials_are_reported_without_their_content(home):
    home.path.mkdir()
    (home.path / "credentials.json").write_text(f'{{"{SECRET}"')
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        home.endpoint(environment={})
    assert SECRET not in str(caught.value)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://merge.example.org", "http://10.0.0.7:8080", "http://127.0.0.1.example.org"])
def test_http_to_another_machine_is_refused_unless_allowed(url):
    with pytest.raises(ConfigurationError, match="in the clear"):
        normalize_url(url, allow_http=False)
    assert normalize_url(url, allow_http=True) == url


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:8080", "https://x.org/sub"]
)
def test_loopback_and_https_are_always_allowed(url):
    assert normalize_url(url + "/", allow_http=False) == url


def test_only_this_machine_is_loopback():
    assert is_loopback("127.8.9.10")
    assert not any(is_loopback(host) for host in ("127.0.0.1.evil.org", "127.0.0", "1127.0.0.1", "example.org"))


@pytest.mark.parametrize(
    "url", ["ftp://x.org", "merge.example.org", "https://user:pw@x.org", "https://x.org?t=1", "https://"]
)
def test_what_is_not_a_plain_address_is_refused(url):
    with pytest.raises(ConfigurationError):
        normalize_url(url, allow_http=True)


def test_a_base_folder_is_remembered_while_it_is_there(home, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    home.remember_base("ab" * 32, folder)
    assert home.base_folder("ab" * 32) == folder
    folder.rmdir()
    assert home.base_folder("ab" * 32) is None
    assert home.base_folder("cd" * 32) is None


def test_credentials_are_plain_json_for_whoever_has_to_repair_them(home):
    home.save_credentials(URL, Token(SECRET), allow_http=True)
    assert json.loads((home.path / "credentials.json").read_text()) == {
        "default": URL,
        "servers": {URL: {"token": SECRET, "allow_http": True}},
    }


@pytest.mark.parametrize("page", ["/dashboard", "/dashboard/projects/acme.tweets", "/v1/server", "/healthz"])
def test_the_address_of_a_page_of_the_server_stands_for_the_server(page):
    assert (
        normalize_url(f"https://merge.example.org/fusion{page}", allow_http=False) == "https://merge.example.org/fusion"
    )


def test_a_home_that_is_a_file_is_told_as_that(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is no folder, or below a file; set GRAMFUSE_HOME"):
        Home(tmp_path / "file").endpoint("http://127.0.0.1:8080")
