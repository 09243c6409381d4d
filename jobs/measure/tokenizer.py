"""The tokens of a text: by the service's /tokenize, and where it has none by the tokenizer in the model's directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.core.errors import RunError
from jobs.core.foreign import load_bytes
from jobs.core.waiting import aside
from jobs.measure.wire import Connections, request_json

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
LIMIT_S, FIRST_S = 60.0, 300.0
"""For one answer, s; and for a token, where graphs may have to be compiled first."""

_CANNOT, _NOT_IMPLEMENTED = 500, 501
_REMEDY = (
    "Point model.path to the directory of the served model with its tokenizer.json and"
    " `pip install tokenizers` here, or choose bench.workload=random."
)

Encode = Callable[[str, bool], tuple[int, ...]]


class NoTokenizer(RunError):
    """The service has no page that tells tokens, and there is no directory that does."""


class Tokenizer:
    """The tokenizer of the model that the service serves by this name; without its folder only the service is asked."""

    def __init__(self, connections: Connections, model: str, folder: Path | None = None) -> None:
        self._connections, self._model, self._folder = connections, model, folder
        self._encode: Encode | None = None

    async def tokens(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Return the token ids of a text. special: with those that the service puts before a prompt.

        Raises:
            RunError: the service does not tell, nor does the directory.
        """
        if self._encode is None:
            asked = {"prompt": text, "add_special_tokens": special}
            status, answer = await self._ask("/tokenize", asked)
            ids = answer.get("tokens")
            if status == 200 and isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids):
                return tuple(ids)
            reason = f"the service's /tokenize tells no token ids (HTTP {status}: {str(answer.get('error'))[:200]})"
            failed = not status or (status >= _CANNOT and status != _NOT_IMPLEMENTED)
            if failed or status == 200:  # it has the page, so this is no reason to go past it
                raise RunError("bench.workload", "text", reason, _REMEDY)
            if self._folder is None:
                raise NoTokenizer("bench.workload", "text", reason, _REMEDY)
            try:
                self._encode = await aside(of_folder, self._folder)
            except RunError as error:
                why = f"{reason}, and {error.value} has no tokenizer to use: {error.reason}"
                raise NoTokenizer("bench.workload", "text", why, _REMEDY) from None
        return self._encode(text, special)

    async def counted(self, text: str) -> int | None:
        """Return how many tokens the service itself counts in a text; None: it takes no texts, or does not tell."""
        asked = {"model": self._model, "prompt": text, "max_tokens": 1, "temperature": 0}
        status, answer = await request_json(self._connections, "/v1/completions", asked, FIRST_S)
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if status == 200 and isinstance(usage, dict) else None
        return count if isinstance(count, int) else None

    async def text(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, by the service's /detokenize. RunError: the service does not tell."""
        status, answer = await self._ask("/detokenize", {"tokens": list(tokens)})
        if status != 200 or not isinstance(answer.get("prompt"), str):
            reason = f"the service's /detokenize tells no text (HTTP {status})"
            raise RunError("bench.client", "prompts", reason, "Choose bench.client=window.")
        return str(answer["prompt"])

    async def _ask(self, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return await request_json(self._connections, path, {"model": self._model, **asked}, LIMIT_S)


@lru_cache(maxsize=4)
def of_folder(folder: Path) -> Encode:
    """Return the tokenizer of a model's directory (tokenizer.json), as the engine that serves it would use it.

    Raises:
        RunError: there is none, or the library `tokenizers` is not installed. `value` is the file.
    """
    path = folder / FILE
    try:
        from tokenizers import Tokenizer as Library  # optional, and of no use elsewhere

        found = Library.from_str(load_bytes(path).decode())
        found.no_padding()  # an engine takes a text as it is, whatever its tokenizer was trained with
        found.no_truncation()
        settings = json.loads(load_bytes(folder / SETTINGS)) if (folder / SETTINGS).is_file() else {}
        begin = _begin(settings, found.token_to_id)
    except ImportError:
        raise RunError("model.path", path, "the library tokenizers is not installed here", _REMEDY) from None
    except RunError as error:
        raise RunError("model.path", path, error.reason, _REMEDY) from None
    except Exception as error:  # the library raises plain Exception for a file that it cannot read
        raise RunError("model.path", path, str(error)[:200], _REMEDY) from None

    def encode(text: str, special: bool) -> tuple[int, ...]:
        ids = tuple(found.encode(text, add_special_tokens=special).ids)
        return (*begin, *ids) if special and ids[: len(begin)] != begin else ids

    return encode


def _begin(settings: dict[str, Any], id_of: Callable[[str], int | None]) -> tuple[int, ...]:
    """Return what tokenizer_config.json puts before a text, which tokenizer.json may leave out (DeepSeek's does)."""
    token = settings.get("bos_token")
    text = token.get("content") if isinstance(token, dict) else token
    known = id_of(text) if settings.get("add_bos_token") and isinstance(text, str) else None
    return () if known is None else (known,)
