"""The real CPU build of vLLM accepts every flag that `engine=vllm_cpu` renders: its own parser is asked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from jobs.core import layout
from jobs.engines.vllm import command
from jobs.sweep import compose

ASK = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(prog="vllm")
ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
lines = json.load(sys.stdin)
for line in lines:
    parser.parse_args(line)
print("accepted", len(lines), flush=True)
parser.parse_args([*lines[0], "--no-such-flag"])
"""

FILLED = {"{api_port}": "8000", "{rpc_port}": "9000", "{master_address}": "127.0.0.1"}
OVERRIDES = (
    ("experiment=demo",),
    ("experiment=demo", "parallel.max_model_len=131072", "parallel.enable_prefix_caching=true"),
    ("experiment=demo", "parallel.enable_expert_parallel=true", "parallel.seed=null", "parallel.block_size=16"),
)


def ask(real_vllm: Path, lines: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """Let the real parser read command lines that begin with `serve`."""
    words, asked = [real_vllm.parent / "python", "-c", ASK], json.dumps(lines)
    return subprocess.run(words, check=False, input=asked, capture_output=True, text=True, timeout=300)


def test_every_rendered_flag_is_accepted(real_vllm: Path) -> None:
    lines = []
    for config in compose.configs(OVERRIDES):
        for place in layout.planned(config):
            words = command.argv(config, place)
            lines.append([FILLED.get(word, word) for word in words[words.index("serve") :]])
    done = ask(real_vllm, lines)
    assert f"accepted {len(lines)}" in done.stdout, done.stderr[-2000:]
    assert "unrecognized arguments: --no-such-flag" in done.stderr
