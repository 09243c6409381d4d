"""The names that a release registers in its source text, for flags that its parser does not hold against them.

`extract_release.py` uses this: KV connectors, tool call parsers and attention backends. Nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from extract_keys import name_of, text_of, trees

PLACES = {
    "kv_connector": ("vllm/distributed/kv_transfer/kv_connector", "vllm_ascend/distributed"),
    "tool_call_parser": ("vllm/tool_parsers", "vllm/entrypoints/openai/tool_parsers", "vllm_ascend/patch/platform"),
    "attention_backend": ("vllm/v1/attention/backends", "vllm/attention/backends"),
}
"""What is registered -> the folders where a release does that."""

OWNERS = {"kv_connector": "KVConnectorFactory", "tool_call_parser": "ToolParserManager"}
"""Classes whose `register...` method has the name as its first argument."""

TABLES = {"tool_call_parser": "_TOOL_PARSERS_TO_REGISTER"}
ENUMS = {"attention_backend": "AttentionBackendEnum"}


def registered(folder: Path) -> dict[str, list[str]]:
    """Return the names by what they are of; nothing for what the release does not register in a form known here."""
    found = {what: sorted(set(_of_folders(what, [folder / one for one in places]))) for what, places in PLACES.items()}
    return {what: names for what, names in found.items() if names}


def _of_folders(what: str, folders: list[Path]) -> Iterator[str]:
    for folder in folders:
        for _, tree in trees(folder):
            for node in ast.walk(tree):
                yield from _names(what, node)


def _names(what: str, node: ast.AST) -> Iterator[str]:
    """Yield the names that one node registers."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("register"):
        if name_of(node.func.value) == OWNERS.get(what):
            given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")]
            texts = [one for item in given for one in (item.elts if isinstance(item, ast.List) else [item])]
            yield from filter(None, map(text_of, texts))
    elif isinstance(node, ast.Assign) and name_of(node.targets[0]) == TABLES.get(what):
        if isinstance(node.value, ast.Dict):
            yield from filter(None, map(text_of, node.value.keys))
    elif isinstance(node, ast.ClassDef) and node.name == ENUMS.get(what):
        named = [name_of(item.targets[0]) for item in node.body if isinstance(item, ast.Assign)]
        yield from (name for name in named if name.isupper())
