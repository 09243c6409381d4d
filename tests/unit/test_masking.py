"""Secrets reach no record and no screen, and text of others no terminal as an order to it."""

from __future__ import annotations

import io
import json
import re
import stat
import unicodedata
from pathlib import Path
from random import Random
from urllib.parse import quote

import markdown_it
import pandas as pd
import pytest
from core_help import change, config

from jobs.cli.output import Printer
from jobs.core import files, hidden, masking
from jobs.core.errors import ConfigError
from jobs.core.rundir import SweepDir
from jobs.core.tasks import read_config, write_config
from jobs.engines.vllm.command import check_args
from jobs.results import page
from jobs.results.table import render
from jobs.sweep import compose, road, show

NAMES = ("HF_TOKEN", "TOKEN", "MODELSCOPE_API_TOKEN", "DB_PASSWD", "GH_PAT", "AWS_ACCESS_KEY_ID", "X_SECRET", "API_KEY")
PLAIN = (
    "PWD",
    "PATH",
    "TOKENIZERS_PARALLELISM",
    "max_num_batched_tokens",
    "first_token_s",
    "token_ids",
    "key",
    "PASSIVE",
    "api_key_file",
    "HF_TOKEN_PATH",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert masking.is_secret(name)
    for words in (
        f"+engine.env.{name}=hidden1",
        f"{{'{name}': 'hidden1'}}",
        f"export {name}='hidden1 x'",
        f"{{{name}:hidden1}}",
    ):
        assert "hidden1" not in masking.text(words)
    assert masking.mask({"env": {name: "hidden1", "A": "b"}}) == {"env": {name: "***", "A": "b"}}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_secret_is_shown(name: str) -> None:
    assert not masking.is_secret(name)
    assert masking.text(f"{name}=shown") == f"{name}=shown"


@pytest.mark.parametrize(
    "words",
    [
        *(
            "http://u:hidden1@h/x",
            "Authorization: Bearer hidden1",
            "x --api-key hidden1 --port 1",
            "--hf-token=hidden1",
        ),
        *("comment=HF_TOKEN=hidden1", "--export=ALL,X=1,HF_TOKEN=hidden1", "model.path=/x/HF_TOKEN=hidden1=b"),
        *("--wrap='HF_TOKEN=hidden1 x'", "a=\"b='HF_TOKEN=hidden1'\"", "setup=[export HF_TOKEN=hidden1]"),
        *("engine.env.HF_TOKEN = ['hidden1']", "env={HF_TOKEN: hidden1}", "env={A: 1, HF_TOKEN: hidden1, B: 2}"),
        *("{'HF_TOKEN': ['hidden1']}", "args={api_key: 'hidden1'}", "HF_TOKEN={x: hidden1}", "+HF_TOKEN='hidden1'x"),
    ],
)
def test_a_secret_is_known_by_its_form(words: str) -> None:
    assert "hidden1" not in masking.text(words)
    assert masking.has_secret(words)


@pytest.mark.parametrize(
    "words",
    [
        *("http://u:pa@hidden1@h/x", "http%3A%2F%2Fu%3Ahidden1%40h", "HF_TOKEN%3Dhidden1", "redis://:hidden1@h/0"),
        *("Authorization: token hidden1", '{"Authorization": "hidden1"}', "authorization: bearer hidden1"),
        *("headers=[['Authorization','hidden1']]", "Cookie: a=b; session=hidden1", "-H 'X-Auth-Token: hidden1'"),
        *("hf_token: hidden1", "HF_TOKEN: |\n  hidden1", "HF_TOKEN := hidden1", "['--api-key', 'hidden1']"),
        *('["--api-key", "hidden1"]', "--api-key\\ hidden1", "HF_TOKEN=$'hidden1'", "HF_TOKEN='a'hidden1"),
        *("comment=HF_TOKEN='hidden1'", "PGPASSWORD=hidden1", "OPENAI_KEY=hidden1", "AccountKey=hidden1"),
        *(
            "https://h/x?a=1&sig=hidden1&b=2",
            "https://h/x?X-Amz-Signature=hidden1",
            "it is hf_hidden1aaaaaaaaaaaaaaaaaa",
        ),
        *("ghp_hidden1aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "eyJhidden1aaa.aaaaaaaaaaaaa.aaaaaaaaaaaaa"),
        "-----BEGIN PRIVATE KEY-----\nMIIhidden1\n-----END PRIVATE KEY-----",
    ],
)
def test_a_secret_is_known_in_urls_headers_lists_and_by_what_tokens_look_like(words: str) -> None:
    assert "hidden1" not in masking.text(words)


LOGINS = (
    *("-u me:hidden1", "curl -u 'me:hid den1' http://x", 'curl -u "me:hid\'den1" x', "curl --user me:hidden1 x"),
    *("curl -sSu me:hidden1 x", "curl -ume:hidden1 x", "curl -U me:hidden1 x", "curl --proxy-user me:hidden1 x"),
    *('["curl", "-u", "me:hidden1"]', "['curl', '-u', 'me:hid,den1']", "-u,me:hidden1", "-u me:'hidden1'"),
    *("curl -u 1000:hidden1 x", "curl --user=me:hidden1 x", "docker pull x; curl -u me:hidden1 y", "--auth me:hidden1"),
    *("curl\\ -u\\ me:hidden1", "-u me:hid\\den1", "x --pass hidden1", "CURL_USERPWD=me:hidden1"),
    *("podman pull --creds me:hidden1 x", "podman pull --creds=me:hidden1", "skopeo copy --src-creds me:hidden1 a b"),
    *("docker login -u me -p hidden1 host", "sshpass -p hidden1 ssh x", "sshpass -phidden1 ssh x"),
    *("machine h login me password hidden1", "http_proxy=me:hidden1@proxy:3128", "me:hid@den1@host:80"),
    *("export https_proxy='me:hidden1@10.0.0.1:3128'", '{"http_proxy": "me:hidden1@proxy:3128"}', "//me:hidden1@h/x"),
    *("pulling from me:hidden1@registry.site:5000/ascend/x", "(me:hidden1@h:1)", "[me:hidden1@h:1]", "me:hidden1@h"),
)


@pytest.mark.parametrize("words", LOGINS)
def test_a_password_is_known_behind_its_user(words: str) -> None:
    for _ in range(2):
        assert "den1" not in masking.text(words)
        words = json.dumps({"x": words})
        assert json.loads(masking.text(words))["x"]


@pytest.mark.parametrize(
    "words",
    [
        *("docker run -u 1000:1000 x", "docker run --user app:staff x", "podman run --user=app:staff x", "-u 1:2"),
        *("--user=app:staff", "-u HwHiAiUser:HwHiAiUser", "-u 10.0.0.1:8000", "date -u +%H:%M", "python -u x.py a:b"),
        *(
            "quay.io/ascend/vllm-ascend:v0.9.1-openeuler@sha256:0123",
            "HOST#ascend/x:v1@sha256:ab",
            "host:5000/name:tag",
        ),
        *("/data:/data:ro", "/data/models:/models", "a:b", "host:80", "12:30:01 me@host", "git@github.com:x/y"),
        *("me@host:/path", "rsync -u host:/path x", "Author: me@x.com", "{mail-user:me@x.com}", "pkg:npm/foo@1.0"),
        *(
            "-u $USER:$PW",
            "curl -u {user}:{password}",
            "login -p $PW",
            "http_proxy=http://proxy:3128",
            "docker run -p 80:80",
        ),
    ],
)
def test_groups_ports_tags_digests_and_mounts_are_no_passwords(words: str) -> None:
    assert masking.text(words) == words


def test_words_of_a_command_line_are_masked_by_the_flag_before_them() -> None:
    for *argv, secret in (
        *(["curl", "-u", "me:hidden1"], ["curl", "--user", "me:hid den1"], ["docker", "login", "-p", "hidden1"]),
        *(["sshpass", "-p", "hidden1"], ["podman", "pull", "--creds", "me:hidden1"]),
    ):
        assert masking.mask([*argv, secret])[:-1] == argv and "den1" not in masking.mask([*argv, secret])[-1]
    for argv in (
        ["docker", "run", "-u", "app:staff"],
        ["-u", "1:2"],
        ["docker", "run", "-p", "80:80"],
        ["python", "-u", 5],
    ):
        assert masking.mask(argv) == argv


@pytest.mark.parametrize(
    "words",
    [
        *(
            "Authorization: Bearer {api_key}",
            "-H 'Authorization: Bearer $KEY'",
            "first token: 12 ms",
            "image: n:t@sha256:a",
        ),
        *("time_per_output_token: 5", "http://h:80 and a@b", "see http://h/a:b c@d", "sort_key=a", "http://u@h:80/x"),
        *("'--model', '/x'", "task-abcdefghijklmnopqrstuvwxyz", "docker run -u 1:2"),
    ],
)
def test_what_only_looks_like_a_secret_is_shown(words: str) -> None:
    assert masking.text(words) == words


def test_a_known_secret_is_known_as_json_python_and_urls_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'a"b\\c d&ü1'
    monkeypatch.setenv("SOME_SITE_TOKEN", secret)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ss-word@proxy:3128")
    for words in (
        secret,
        json.dumps([secret]),
        json.dumps([secret], ensure_ascii=False),
        quote(secret, ""),
        repr(secret),
    ):
        assert masking.text(f"it is {words} here").replace("***", "") in (
            "it is  here",
            'it is [""] here',
            "it is '' here",
        )
    assert masking.text("proxy said p@ss-word") == "proxy said ***"


def test_a_secret_of_this_shell_is_known_by_its_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_SITE_TOKEN", "hidden-by-value")
    assert masking.text("it is hidden-by-value here") == "it is *** here"
    files.write_json(tmp_path / "a.json", {"x": "hidden-by-value"})
    files.append_json(tmp_path / "b.jsonl", {"x": "hidden-by-value"})
    assert "hidden" not in (tmp_path / "a.json").read_text() + (tmp_path / "b.jsonl").read_text()
    files.write_text(tmp_path / "a.key", "hidden-by-value", files.SECRET)
    assert (tmp_path / "a.key").read_text() == "hidden-by-value"


TOLD = (
    '{"AWS_SECRET_ACCESS_KEY":"hidden-value"}',
    'HF_TOKEN="hidden-value" x',
    '--api-key "hidden-value" x',
    "run --api-key 'hidden-value' --x",
    'password="hidden-value',
    "{'hf_token': 'hidden-value'}",
)


@pytest.mark.parametrize("words", TOLD)
def test_a_secret_is_known_in_what_json_made_of_its_quotes(words: str) -> None:
    """Commands print JSON of lines that hold JSON, and a log cuts a line in the midst of a value."""
    for _ in range(2):
        assert "value" not in masking.text(words) and "hidden" not in masking.text(words), words
        words = json.dumps({"line": words})
        assert json.loads(masking.text(words))["line"]
    assert masking.text('password="a\\"b" x') == 'password="***" x'


PIECES = (
    *("HF_TOKEN=", "abc123", '"', "'", "\\", "\n", " ", ",", "{", "}", "[", "]", "|", "%3D", "@", "x:A=", "hf_token: "),
    *("-u ", "me:", "--user", "curl ", "login -p "),
    *("https://h/x?sig=", "&b=1", "-----BEGIN PRIVATE KEY-----", "-----END", "Authorization: ", "Bearer tok12345"),
    *("Cookie: a=b", "http://u:pw12345@h", "--api-key", "$'x'y", "hf_" + "a" * 24),
)


def test_json_without_its_secrets_is_json() -> None:
    """Commands print JSON through the mask, with whatever a log, a reason or a command line holds."""
    random = Random(1)
    for _ in range(5000):
        text = "".join(random.choice(PIECES) for _ in range(random.randint(1, 7)))
        forms = ([text, "b"], {"x": {"argv": ["--api-key", text]}}, {"a": json.dumps({"k": text})}, {"a": repr(text)})
        words = json.dumps(random.choice(forms), ensure_ascii=False)
        json.loads(masking.text(words))


@pytest.mark.parametrize(
    "words",
    [
        *("a" * 100_000, "a=" * 50_000, "--a-" * 30_000, "://a:" * 30_000, "a='" * 50_000, "a=[" * 50_000),
        *(
            "a={" * 50_000,
            "a=['{" * 30_000,
            "a=" + "b!" * 50_000 + "=c",
            "a: " * 50_000,
            "{a: " * 30_000,
            ",a" * 50_000,
            'a=\\"' * 50_000,
            'a="\\' * 50_000,
            'a="' + "\\" * 100_000,
            "a\\" * 50_000,
            "token=" + '\\"' * 50_000,
            *("%3a%2f%2fa%3a" * 15_000 + "%40", "authorization: " * 20_000, "authorization" + " " * 100_000),
            *("-u a:" * 30_000, "-u 'a:" * 30_000, "a:b@" * 30_000, "a:" * 50_000 + "@", "login " * 20_000 + "-p"),
            *("machine a login " * 10_000, "-u '" + "a" * 100_000, "-u a:" + "b" * 100_000, "-u" * 50_000 + ":"),
            *("eyJ" + "a." * 50_000, "hf_token: |" + " " * 100_000, "['--a', " * 30_000, "a='b'c" * 30_000),
            *("PRIVATE KEY-----" * 10_000, "://" + "a" * 100_000 + ":" + "b" * 100_000, "x:A=" * 30_000),
        ),
    ],
    ids=lambda words: words[:6],
)
@pytest.mark.timeout(20)
def test_no_text_makes_the_mask_slow(words: str) -> None:
    masking.text(words)


def test_an_argv_is_masked_by_its_flags() -> None:
    assert masking.mask(["vllm", "--api-key", "hidden1", "--port", "8000"]) == [
        "vllm",
        "--api-key",
        "***",
        "--port",
        "8000",
    ]
    assert masking.mask([]) == []


def test_a_config_is_written_without_its_secrets_and_read_back_with_them(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path)
    one = change(
        config("cluster=local"),
        engine__env={"HF_TOKEN": "hidden11", "PLAIN": "shown", "URL": "http://u:hidden22@h/"},
    )
    write_config(sweep, "p", one)
    folder = sweep.point("p")
    assert stat.S_IMODE(folder.secrets.stat().st_mode) == 0o600
    for path in folder.path.iterdir():
        assert "hidden" not in path.read_text()
    assert "shown" in folder.config.read_text()
    assert read_config(sweep, "p") == one
    write_config(sweep, "q", config("cluster=local"))
    assert not sweep.point("q").secrets.exists()


@pytest.mark.parametrize("flag", ["api-key", "api_key", "hf-token", "api-k"])
def test_flags_that_everybody_sees_are_refused_with_the_right_place(flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_args({flag: "hidden1"})
    assert "hidden1" not in str(caught.value)
    assert "engine.api_key" in caught.value.remedy or "engine.env.HF_TOKEN" in caught.value.remedy


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("cluster.setup=['export HF_TOKEN=hidden1']", "cluster.setup"),
        ("+engine.args.x='http://u:hidden1@h/'", "engine.args.x"),
        ("cluster.account='Bearer hidden1'", "cluster.account"),
        ("+engine.env.HF_TOKEN=hidden1,hidden2", "engine.env.HF_TOKEN"),
    ],
)
def test_a_secret_stands_in_the_engines_variables_alone(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        road.plan(compose.expand(["cluster=local", "engine=simulator", override]))
    assert caught.value.key == key
    assert "hidden" not in masking.text(str(caught.value))  # as every printer has it


EVIL = "a\x1b]52;c;QQ==\x07b\x9b2Jc\u202ed\u2066e\x00f"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert hidden.visible(EVIL) == "a\\x1b]52;c;QQ==\\x07b\\u009b2Jc\\u202ed\\u2066e\\x00f"
    assert hidden.visible("Ü 中文 😀\n\tx") == "Ü 中文 😀\n\tx"
    out = io.StringIO()
    print(EVIL, "HF_TOKEN=hidden1", file=Printer(out))
    assert out.getvalue() == hidden.visible(EVIL) + " HF_TOKEN=***\n"
    assert json.loads(hidden.visible(json.dumps({"a": EVIL}, ensure_ascii=False)))["a"]


def test_what_hides_is_what_unicode_calls_control_format_surrogate_or_end_of_a_line() -> None:
    """And nothing that Python calls printable: a text of such letters alone is not looked through."""
    every = [chr(code) for code in range(0x110000)]
    marks = {one for one in every if hidden._HIDDEN.match(one)}
    assert not any(one.isprintable() for one in marks)
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    assert {one for one in every if unicodedata.category(one) in kinds} - marks == {"\t", "\n"}


def test_the_console_shows_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    show.console().print(EVIL)
    row = dict.fromkeys((*show.SHOWN, "saturated"), 1.0) | {"point": "p", "valid": True, "engine": EVIL, "notes": None}
    frame = pd.DataFrame([row])
    show.console().print(show.table_view(frame, (), None))
    assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(capsys.readouterr().out)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", " =1", "\x1b[2J", "\u3000=1"])
def test_a_cell_of_a_csv_file_is_no_formula(cell: str) -> None:
    frame = pd.DataFrame([{"a": cell, "b": -1.5, "c": -3}])
    line = render(frame, "csv").decode().splitlines()[1]
    assert not line.lstrip('"').lstrip().startswith(("=", "+", "-", "@")) and "\x1b" not in line
    assert line.endswith(",-1.5,-3")


@pytest.mark.parametrize("cell", ["x;=1+1", "x\t@SUM(A1)", "\uff1d1+1", "x\n =1", "x; +1"])
def test_no_part_of_a_cell_is_one_where_other_signs_end_a_cell(cell: str) -> None:
    """Of the whole world's spreadsheets some take `;` or a tab for the end of a cell, or = in full width for =."""
    shown = render(pd.DataFrame([{"a": cell}]), "csv").decode().partition("\n")[2].strip().strip('"')
    assert not any(part.lstrip()[:1] in "=+-@\uff1d" for part in re.split(r"[;\t\n]", shown)), shown


def test_markdown_holds_no_html_link_or_image() -> None:
    frame = pd.DataFrame([{"a<b>": "<img src=x> [x](javascript:1) ![y](z) `c`", "n": "[1, 2]"}])
    text = render(frame, "md").decode()
    for active in ("<img", "[x]", "[y]", "`c", "<b"):
        assert text.count(active) == text.count("\\" + active)
    assert "[1, 2]" in text


@pytest.mark.parametrize("cell", ["[1](http://x)", "[ a](http://x)", "![2](x)", "[1][x]", "\\<img src=x>", "\\[x](y)"])
def test_a_link_that_begins_like_a_list_and_a_stroke_before_another_make_nothing_active(cell: str) -> None:
    text = render(pd.DataFrame([{"a": cell}]), "md").decode()
    html = markdown_it.MarkdownIt("gfm-like", {"html": True}).disable("linkify").render(text)
    assert not {"<a", "<img"} & set(re.findall(r"<\w+", html)), html


def test_the_page_runs_its_own_programs_alone() -> None:
    text = page.render({"name": "<x>"})
    policy = text.partition('HTTP-EQUIV="Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none';")
    assert policy.count("'sha256-") == text.count("<script>") == len(page.SCRIPTS)
    assert "script-src 'unsafe-inline'" not in policy
