"""Passwords on command lines of well-known programs reach no record, and what only looks like one is shown."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from jobs.core import masking

TOLD = (
    *(
        "mysql -phid1den db",
        "mysql -uroot -p'hid1den x' -e y",
        'mysqldump -h h -p"hid1den" db',
        "sudo mariadb -phid1den",
    ),
    *("docker exec db mysql -uroot -phid1den", "bash -c 'mysql -phid1den db'", "mysql \\\n  -u me \\\n  -phid1den"),
    *("[mysql, -phid1den]", '["mysql", "-phid1den"]', "- mysql\n- -phid1den", "7z x -phid1den a", "mysql -p$'hid1den'"),
    *(
        "redis-cli -h h -a hid1den ping",
        "redis-cli -ahid1den",
        "['valkey-cli', '-a', 'hid1den x']",
        "http -a me:hid1den h",
    ),
    *("mongosh -u me -p hid1den", "mongodump -p=hid1den", "cqlsh -u me -p hid1den", "beeline -u jdbc:x -p hid1den"),
    *("ldapsearch -x -D cn -w hid1den", "ldapadd -xw hid1den", "ipmitool -U a -P hid1den", "unzip -P hid1den a.zip"),
    *("snmpwalk -c hid1den h", "openssl enc -k hid1den", "openssl rsa -passin pass:hid1den", "sqlcmd -U a -Phid1den"),
    *("smbclient //h/s -U 'me%hid1den'", "net ads join -U me%hid1den", "lftp -u me,hid1den h", "sqlplus me/hid1den@db"),
    *("mc alias set a http://h me hid1den", "aws configure set aws_secret_access_key hid1den", "wandb login hid1den"),
    *("npm config set //r/:_authToken hid1den", "vault login -no-print hid1den", "kubectl x --from-literal=a=hid1den"),
    *(
        "wpa_passphrase ssid hid1den",
        "xfreerdp /u:me /p:hid1den",
        "influx -password hid1den",
        "keytool -storepass hid1den",
    ),
    *("echo hid1den | docker login --password-stdin h", "printf '%s\\n' 'hid1den' | sudo -S x", "kinit me <<< hid1den"),
    *("CREATE USER a IDENTIFIED BY 'hid1den'", "ALTER ROLE a WITH PASSWORD 'hid1den'", "login me\n password hid1den"),
    *("Server=h;Pwd=hid1den;", "mount -o user=me,pass=hid1den //h/s /m", "password: hid1den", "- token: hid1den"),
    *("密码：hid1den", "口令 = hid1den，", "https://h1dden1hid1den@git.x/a", "conda x https://h/t/hid1den-x/c"),
    *(
        "curl --oauth2-bearer hid1den",
        "SLURM_JWT=hid1den",
        "REDISCLI_AUTH=hid1den",
        "--auth=me:hid1den",
        "DB_PW=hid1den",
    ),
    *("HF_TOKEN_2=hid1den", "PASSWORD1=hid1den", "authtoken=hid1den", "Authorization: Basic hid1den"),
    *(
        "wget --password=hid1den x",
        "psql postgresql://me:hid1den@h/d",
        "PGPASSWORD=hid1den psql",
        "--export=ALL,TOKEN=hid1den",
    ),
)


@pytest.mark.parametrize("words", TOLD)
def test_a_password_is_known_by_the_program_that_takes_it(words: str) -> None:
    for _ in range(3):
        assert "1den" not in masking.text(words), masking.text(words)
        words = json.dumps({"x": words}, ensure_ascii=False)
        assert json.loads(masking.text(words))["x"]


@pytest.mark.parametrize(
    "words",
    [
        *(
            "ghp_hid1denaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "glrt-hid1denaaaaaaaaaaaaaaa",
            "ASIAHID1DENAAAAAAAAA",
            "npm_" + "a1" * 18,
        ),
        *(
            "AIzahid1denaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJoaWQxZGVuIn0.",
            "hvs." + "a1" * 12,
        ),
        *("eyJhbGciOiJkaXIi.eyJhbGciOiJkaXIi.aaaa.bbbb.cccc", "sk_live_" + "a1" * 12, "dckr_pat_" + "a1" * 12),
    ],
)
def test_a_token_is_known_by_what_it_looks_like(words: str) -> None:
    assert masking.text(f"it is {words} x") == f"it is {masking.MASK} x"


SHOWN = (
    *(
        "docker run -p 8000:8000 mysql:8",
        "docker run -p 80:80 mysql -p",
        "mysql -p db",
        "mysql -P 3306 -h h",
        "7z x a.7z",
    ),
    *("mysql -p$PW", "redis-cli -a {password}", "redis-cli -p 6379 ping", "mongosh -p --host h", "cp -a redis x"),
    *(
        "ssh -p 22 h",
        "mkdir -p a/b",
        "tar -xpf a",
        "srun -p debug -A account x",
        "sbatch -a 1-10 x",
        "squeue -u me -p x",
    ),
    *(
        "pytest -p no:xdist",
        "nvidia-smi -a",
        "npu-smi info -p 0",
        "wget -P /dir https://h/x",
        "zip -r a b",
        "unzip -p a b",
    ),
    *(
        "openssl dgst -sha256 x",
        "openssl rsa -passin file:/x",
        "ldapsearch -x -W",
        "ping -w 2 net",
        "git config user.name me",
    ),
    *(
        "git clone https://github.com/vllm-project/vllm",
        "https://me@git.x/a",
        "wandb login",
        "kubectl get pods -p",
        "net -U x",
    ),
    *(
        "eos_token: <|im_end|>",
        "bos_token=<s>",
        '"pad_token": "<pad>"',
        "first_token=5 ms",
        "max_tokens: 128",
        "token: 12",
    ),
    *(
        "num_token=5",
        "max_num_batched_tokens=8192",
        "--tokenizer Qwen/Qwen2.5-7B",
        "Basic usage of it",
        "password: null",
    ),
    *(
        "Qwen/Qwen2.5-7B-Instruct",
        "deepseek-ai/DeepSeek-V3.1",
        "hf_transfer",
        "sk-learn",
        "npm_config_cache=/x",
        "t/1/t/2",
    ),
    *("sha256:" + "0123456789abcdef" * 4, "commit 933e9a7f1c2b3d4e5f60718293a4b5c6d7e8f901", "sqlplus / as sysdba"),
    *("echo $PW | docker login --password-stdin h", "docker login --password-stdin h", "echo a | grep b", "sudo -S x"),
    *("cd x;PWD=/y", "密码错误", "password is required", "Password: ", "identified by its name", "login me password"),
)


@pytest.mark.parametrize("words", SHOWN)
def test_what_is_another_thing_to_another_program_is_shown(words: str) -> None:
    assert masking.text(words) == words
    assert masking.text(json.dumps([words])) == json.dumps([words])


@pytest.mark.parametrize(
    "name", ["eos_token", "first_token", "secret_file", "password-stdin", "tokens", "author", "sort_key", "PyJWT"]
)
def test_names_of_other_things_are_none_of_secrets(name: str) -> None:
    assert not masking.is_secret(name)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["mysql", "-uroot", "-pmy hid1den", "-e", "x"], "-p***"),
        (["/usr/bin/redis-cli", "-h", "h", "-a", "my hid1den"], "***"),
        (["mongosh", "-p", "a,'hid1den"], "***"),
        (["openssl", "x", "-passin", "pass:hid1den"], "pass:***"),
        (["smbclient", "//h/s", "-U", "me%hid1den"], "me%***"),
        (["sqlplus", "me/hid1den@db"], "me/***"),
        (["influx", "-password", "hid1den"], "***"),
    ],
)
def test_words_of_a_command_line_are_masked_behind_their_program(argv: list[str], shown: str) -> None:
    at = next(at for at, word in enumerate(argv) if "hid1den" in word)
    assert masking.mask(argv) == [*argv[:at], shown, *argv[at + 1 :]]


@pytest.mark.parametrize(
    "argv",
    [
        ["docker", "run", "-p", "8000:8000", "mysql", "-p"],
        ["mysql", "-p", "db"],
        ["redis-cli", "-p", "6379"],
        ["ssh", "-p", "22", "h", "-a"],
        ["vllm", "serve", "-tp", "2", 5],
    ],
)
def test_words_of_other_programs_are_shown(argv: list[object]) -> None:
    assert masking.mask(argv) == argv


PIECES = (
    *(
        "mysql ",
        "-p",
        "redis-cli",
        " -a ",
        "abc1",
        '"',
        "'",
        "\\",
        "\n",
        " ",
        ",",
        "]",
        "}",
        ":",
        "echo ",
        " | sudo -S",
        "kinit <<< ",
    ),
    *(
        "password for x = '",
        "login me password ",
        "-token ",
        ";pwd=",
        "user=a,pass=",
        "https://abcdefghijk1",
        "@h/t/",
        "openssl ",
    ),
    *("-passin pass:", "smbclient -U a%", "密码：", "password: ", "\\\n", "identified by "),
)


def test_json_without_its_passwords_is_json() -> None:
    random = Random(2)
    for _ in range(5000):
        text = "".join(random.choice(PIECES) for _ in range(random.randint(1, 9)))
        forms = (
            [text, "b"],
            {"x": ["mysql", text]},
            {"a": json.dumps({"k": text})},
            {"a": repr(text)},
            ["redis-cli", "-a", text],
        )
        json.loads(masking.text(json.dumps(random.choice(forms), ensure_ascii=False)))


@pytest.mark.parametrize(
    "words",
    [
        *(
            "mysql " * 20_000,
            "mysql -p'" * 20_000,
            "mysql" + " -p'a" * 20_000,
            "echo a" * 20_000 + "|",
            "vault login " * 20_000,
        ),
        *(
            "sudo -S " * 20_000 + "<<<",
            "login a " * 20_000 + "password",
            "-password " * 20_000,
            "user=a," * 20_000 + ",pass=",
        ),
        *(
            "aws configure " + "a" * 100_000,
            "mc alias set " * 8_000,
            "sqlplus " + "a/ " * 50_000,
            "smbclient -U" + "a" * 100_000,
        ),
        *("wandb login " + "-a " * 30_000, "mysql \\\n" * 20_000, "mysql\n-" * 20_000, 'mysql -p"' + "\\" * 100_000),
        *(
            "redis-cli -a" + " " * 100_000,
            'redis-cli -a", ' * 20_000,
            "password: '" * 20_000,
            " " * 100_000 + "token: a",
        ),
        *(
            "https://" + "a-" * 100_000 + "@",
            "http://a/t/" * 10_000,
            "ldapsearch -" + "x" * 100_000,
            "eyJ" + "a." * 50_000,
        ),
    ],
    ids=lambda words: words[:12],
)
@pytest.mark.timeout(20)
def test_no_text_makes_it_slow(words: str) -> None:
    masking.text(words)


def test_a_record_of_the_command_line_of_a_clean_config_stays_as_it_is(tmp_path: Path) -> None:
    argv = [
        "vllm",
        "serve",
        "/models/Qwen3-32B",
        "--served-model-name",
        "qwen",
        "-tp",
        "8",
        "--max-num-batched-tokens",
        "8192",
    ]
    assert masking.mask(argv) == argv and masking.text(" ".join(argv)) == " ".join(argv)
