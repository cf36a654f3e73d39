"""Credentials: whether they exist, by the rule of the official client; and causes of failures on this machine."""

import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import urllib.error
from pathlib import Path

import certifi
import pytest
import requests

from pipeline.kaggle import client as kaggle_client
from pipeline.kaggle import process
from tests.kaggle_server import KEY, NAME, TOKEN, KaggleServer

KEY_JSON = json.dumps({"username": NAME, "key": KEY}).encode()
LOGIN = {"refresh_token": KEY, "access_token": TOKEN, "access_token_expiration": "2999-01-01T00:00:00+00:00"}
UTF_16 = TOKEN.encode("utf-16")
FOLDER = None  # in place of a file
# What may be in each place, and what makes it unreadable.
FILES = {
    ".kaggle/access_token": (TOKEN.encode(), TOKEN.encode() + b"\n", b"\n", UTF_16, FOLDER),
    ".kaggle/access_token.txt": (TOKEN.encode(), b"", UTF_16),
    ".kaggle/credentials.json": (json.dumps(LOGIN).encode(), b"{}", b"{"),
    ".kaggle/kaggle.json": (KEY_JSON, b"{", b'{"username": "demo"}', b"[]", FOLDER),
    ".config/kaggle/kaggle.json": (KEY_JSON, b"", UTF_16),
    "xdg/kaggle/kaggle.json": (KEY_JSON, b"{", FOLDER),
    "elsewhere/kaggle.json": (KEY_JSON, b'{"proxy": ""}'),
    "elsewhere/token": (TOKEN.encode(), b"", UTF_16),
}
VARIABLES = {
    "KAGGLE_API_TOKEN": (TOKEN, "{home}/elsewhere/token"),
    "KAGGLE_USERNAME": (NAME,),
    "KAGGLE_KEY": (KEY,),
    "KAGGLE_CONFIG_DIR": ("{home}/elsewhere", "{home}/missing"),
    "XDG_CONFIG_HOME": ("{home}/xdg",),
    "KAGGLE_KERNEL_RUN_TYPE": ("Interactive",),
    "KAGGLE_DATA_PROXY_URL": ("http://localhost",),
    "KAGGLE_API_V1_TOKEN": ("{home}/elsewhere/token",),
}
UNREADABLE = (UTF_16, FOLDER)


def make_home(home, files, skip=()):
    for name, content in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is FOLDER and name not in skip:
            path.mkdir()
        elif name not in skip:
            path.write_bytes(content)
    return home


def ask(questions, server):
    """The replies of `tests.kaggle_places` to pairs of an action and environment variables."""
    common = {name: value for name, value in os.environ.items() if not name.startswith(("KAGGLE_", "XDG_"))}
    common |= {name: value for name, value in server.environment.items() if value not in (NAME, KEY)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kaggle_places"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        env=common,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("count", [pytest.param(25, id="some"), pytest.param(500, id="many", marks=pytest.mark.slow)])
def test_existence_follows_the_rule_of_the_client(kaggle, tmp_path, count):
    """Random places. Where the client fails, the answer is that of a client without what it cannot read."""
    kaggle.fail["IntrospectToken"] = 'json: {"active": true, "username": "demo"}'  # any token is valid
    generator, cases, questions = random.Random(count), [], []

    def choose(options, share):
        return {name: generator.choice(values) for name, values in options.items() if generator.random() < share}

    for number in range(count):
        files, variables = choose(FILES, 0.25), choose(VARIABLES, 0.3)
        cases.append((files, variables))
        # What cannot be read, and the login, which the client reads last: a failure before hides it.
        skip = {".kaggle/credentials.json", *(name for name, content in files.items() if content in UNREADABLE)}
        for kind, skipped in (("whole", ()), ("readable", skip)):
            home = make_home(tmp_path / f"{number} {kind}", files, skipped)
            home.mkdir(exist_ok=True)
            environment = {name: value.format(home=home) for name, value in variables.items()} | {"HOME": str(home)}
            if kind == "readable" and files.get("elsewhere/token") in UNREADABLE and "elsewhere/token" in files:
                environment = {name: value for name, value in environment.items() if not value.endswith("/token")}
            questions.append(("authenticate", environment))
            if kind == "whole":
                questions.insert(number, ("find_credentials", environment))
    replies = ask(questions, kaggle)
    n_existing = 0
    for number, case in enumerate(cases):
        (reply, created), client, client_of_readable = replies[number], *replies[count + 2 * number :][:2]
        expected = client_of_readable if client == "error" else client
        assert ("error" not in reply) == (expected == "yes"), (case, reply, client)
        assert not created, case
        assert client != "error" or expected == "yes" or reply["error"] == "local", (case, reply)
        n_existing += expected == "yes"
    assert 0.2 < n_existing / count < 0.9


# Causes on this machine: files, variables, and what the message must contain.
FINE = {"KAGGLE_USERNAME": NAME, "KAGGLE_KEY": KEY}
CAUSES = {
    "folder": ({".kaggle/kaggle.json": FOLDER}, {}, ".kaggle/kaggle.json (Is a directory)"),
    "folder, XDG": ({".config/kaggle/kaggle.json": FOLDER}, {}, ".config/kaggle/kaggle.json (Is a directory)"),
    "folder for the token": ({".kaggle/access_token": FOLDER}, FINE, ".kaggle/access_token (Is a directory)"),
    "malformed": ({".kaggle/kaggle.json": b'{"username": '}, {}, ".kaggle/kaggle.json is not valid JSON"),
    "byte order mark": ({".kaggle/kaggle.json": b"\xef\xbb\xbf" + KEY_JSON}, {}, "kaggle.json is not valid JSON"),
    "list": ({".kaggle/kaggle.json": b"[1]"}, {}, ".kaggle/kaggle.json is not a JSON object"),
    "UTF-16 key": ({".kaggle/kaggle.json": KEY_JSON.decode().encode("utf-16")}, {}, "kaggle.json is not UTF-8 text"),
    "UTF-16 token": ({".kaggle/access_token": UTF_16}, {}, ".kaggle/access_token is not UTF-8 text"),
    "UTF-16 in a named file": (
        {"token": UTF_16},
        {"KAGGLE_API_TOKEN": "{home}/token"},
        "KAGGLE_API_TOKEN is not UTF-8",
    ),
    "malformed login": ({".kaggle/credentials.json": b"{"}, {}, ".kaggle/credentials.json is not valid JSON"),
    "quotes": ({}, FINE | {"KAGGLE_KEY": f"\u201c{KEY}\u201d"}, "KAGGLE_KEY contains a character that does not belong"),
    "plain quotes": ({}, FINE | {"KAGGLE_KEY": f"'{KEY}'"}, "(apostrophe)"),
    "quotes in the token": ({}, {"KAGGLE_API_TOKEN": f"\u201c{TOKEN}\u201d"}, "KAGGLE_API_TOKEN contains a character"),
    "newline in the key": (
        {},
        FINE | {"KAGGLE_KEY": f"{KEY}\n"},
        "KAGGLE_KEY contains a character that does not belong",
    ),
    "newline in the token": ({}, {"KAGGLE_API_TOKEN": f"{TOKEN}\n"}, "(line break)"),
    "newline in the file": (
        {".kaggle/access_token": f"{TOKEN}\n{TOKEN}".encode()},
        {},
        ".kaggle/access_token contains",
    ),
    "newline in the JSON": (
        {".kaggle/kaggle.json": json.dumps({"username": NAME, "key": KEY + "\n"}).encode()},
        {},
        ".kaggle/kaggle.json contains a character that does not belong",
    ),
    "no such file": ({}, {"KAGGLE_API_TOKEN": "/nowhere/token"}, "KAGGLE_API_TOKEN names a file that does not exist"),
    "long token": ({}, {"KAGGLE_API_TOKEN": TOKEN * 20}, ""),
    "user name alone": ({}, {"KAGGLE_USERNAME": NAME}, "there is only the username"),
    "no home": ({}, FINE | {"HOME": "~"}, "there is no home folder: set HOME"),
}


@pytest.fixture(scope="module")
def replies_to_causes(tmp_path_factory):
    """The reply to a download by the name of the cause."""
    server, questions = KaggleServer(), []
    for number, (files, variables, _) in enumerate(CAUSES.values()):
        home = make_home(tmp_path_factory.mktemp(f"home{number}"), files)
        environment = {"HOME": str(home)} | {name: value.format(home=home) for name, value in variables.items()}
        questions.append(("download", environment))
    yield dict(zip(CAUSES, (reply for reply, _ in ask(questions, server)), strict=True))
    server.close()


@pytest.mark.parametrize("cause", CAUSES)
def test_local_causes_are_named(replies_to_causes, cause):
    reply, message = replies_to_causes[cause], CAUSES[cause][2]
    if ".config/" in message and sys.platform != "linux":
        pytest.skip("the client reads this folder on Linux only")
    if cause == "long token" and reply["error"] != "local":
        return  # Python 3.14: a name that is too long for a file is no error
    error = kaggle_client.explain(reply)
    assert error.exit_code == 2 and message in str(error) and "\n" not in str(error)
    assert KEY not in str(error) and TOKEN not in str(error)


def test_without_a_home_nothing_is_created(kaggle, command, monkeypatch, tmp_path):
    """The client would create a folder with the name "~"."""
    monkeypatch.setenv("HOME", "~")
    monkeypatch.chdir(tmp_path)
    run = command("--stage", "download", "--data", "kaggle", "--workspace", tmp_path / "workspace")
    assert (run.code, run.err.count("\n")) == (2, 1) and "there is no home folder" in run.err
    monkeypatch.delenv("KAGGLE_KEY")
    run = command("--stage", "download", "--workspace", tmp_path / "workspace")
    assert run.code == 0 and "no data from Kaggle: there is no home folder" in run.out
    assert "sample data: 5,000 digits" in run.out
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


def run_child(action):
    """The reply of the child process, which a user without root's rights runs."""
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("setpriv is missing, and root can read every file")
    request = {"action": action, "competition": "digit-recognizer", "max_resumes": 1, "folder": "."}
    command = [*prefix, sys.executable, "-P", process.__file__]
    run = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=60, check=False)
    return json.loads(run.stdout)


@pytest.mark.parametrize("place", ["", ".kaggle", ".kaggle/access_token", ".config/kaggle/kaggle.json"])
def test_place_without_permission(place):
    if "config" in place and sys.platform != "linux":
        pytest.skip("the client reads this folder on Linux only")
    files = {".config/kaggle/kaggle.json": KEY_JSON} if "config" in place else {".kaggle/access_token": b"x"}
    path = make_home(Path.home(), files) / place
    path.chmod(0)
    try:
        for action in ("find_credentials", "download"):
            reply = run_child(action)
            assert reply["error"] == "local" and place in reply["detail"] and "Permission denied" in reply["detail"]
    finally:
        path.chmod(0o700)


def test_home_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", NAME)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    Path.home().chmod(0o500)
    try:
        assert run_child("find_credentials") == {}
        reply = run_child("download")
        assert reply["error"] == "local" and f"{Path.home()}/." in reply["detail"]
        assert "Permission denied" in reply["detail"]
    finally:
        Path.home().chmod(0o700)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_missing_certificates(command, monkeypatch, tmp_path, name):
    monkeypatch.setenv("KAGGLE_USERNAME", NAME)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    run = command("--stage", "download", "--data", "kaggle", "--workspace", tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert f"{name} names {tmp_path / 'ca.pem'}, which cannot be read as certificates (No such file" in run.err


class TestCertificates:
    """The description of failed connections."""

    @pytest.fixture(autouse=True)
    def no_variables(self, monkeypatch):
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        ("variables", "error", "named"),
        [
            ({"REQUESTS_CA_BUNDLE": "bad"}, requests.ConnectionError(), "REQUESTS_CA_BUNDLE"),
            ({"CURL_CA_BUNDLE": "missing"}, requests.Timeout(), "CURL_CA_BUNDLE"),
            ({"REQUESTS_CA_BUNDLE": "good", "CURL_CA_BUNDLE": "bad"}, requests.ConnectionError(), None),  # not used
            ({"SSL_CERT_FILE": "missing"}, requests.exceptions.SSLError(), "SSL_CERT_FILE"),
            ({"SSL_CERT_FILE": "missing"}, requests.ConnectionError(), None),  # certificates play no part
            ({"REQUESTS_CA_BUNDLE": "folder"}, requests.ConnectionError(), None),
            ({}, requests.exceptions.SSLError(), None),
        ],
    )
    def test_variable_is_named(self, monkeypatch, tmp_path, variables, error, named):
        (tmp_path / "bad").write_text("no certificate")
        (tmp_path / "good").write_bytes(Path(certifi.where()).read_bytes())
        (tmp_path / "folder").mkdir()
        for name, file in variables.items():
            monkeypatch.setenv(name, str(tmp_path / file))
        reply = process.describe_error(error)
        if named:
            assert reply["error"] == "local" and reply["detail"].startswith(f"{named} names {tmp_path}")
        else:
            assert reply["error"] == "connection" and reply["temporary"]

    def test_openml(self, command, monkeypatch, tmp_path):
        def fail(*arguments, **options):
            raise urllib.error.URLError(ssl.SSLCertVerificationError("certificate verify failed"))

        monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
        run = command("--stage", "download", "--data", "openml", "--workspace", tmp_path)
        assert run.code == 1 and "certificate verify failed" in run.err
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        run = command("--stage", "download", "--data", "openml", "--workspace", tmp_path)
        assert (run.code, run.err.count("\n")) == (2, 1) and f"SSL_CERT_FILE names {tmp_path / 'ca.pem'}" in run.err
