"""What speculative decoding did in a window, by the engines' own counters, and whether the prompts do it justice.

vLLM counts drafts (one for each sequence and step), the tokens in them, and those accepted, in all and by their
place in the draft (v1/spec_decode/metrics.py); before V1 it counted the tokens that a step gave instead of the drafts
(engine/metrics.py). A draft is a guess at text: of random token ids nothing can be guessed, so with them speculation
looks worse than it is, or, where the answer falls into a loop, better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.core.config import Config
from jobs.engines.speculation import speculation_of
from jobs.measure.records import Drafts

COLUMNS = ("spec_tokens", "spec_acceptance", "spec_tokens_per_step", "spec_by_position", "spec_text")

NOT_TEXT = (
    "speculative decoding on prompts that are no text: what is accepted, and so the speed, is not that of real prompts"
    " (bench.workload=text)"
)


def is_seen(config: Config, drafts: Drafts | None) -> bool:
    """Return whether speculation is asked for, or the engines drafted without."""
    return speculation_of(config) is not None or (drafts is not None and drafts.tokens > 0)


def figures(config: Config, drafts: Drafts | None, *, text: bool) -> dict[str, Any]:
    """Return the columns of a row, all None without speculation but the first; `text`: the prompts are text.

    spec_tokens: drafted for one step, by the config, else by the engines; 0: speculation is off.
    spec_acceptance: share of the drafted tokens that were accepted.
    spec_tokens_per_step: tokens that a step gave a sequence, with the one that is always given ("mean acceptance
        length" in vLLM's log).
    spec_by_position: share of the drafts whose first, second, ... token was accepted, as JSON text.
    spec_text: the prompts are text; False: what is told here is not that of real prompts.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    if not is_seen(config, drafts):
        return row | {"spec_tokens": 0}
    asked = speculation_of(config)
    count = asked.tokens if asked else None
    row |= {"spec_tokens": count, "spec_text": text}
    if drafts is None or not drafts.tokens:
        return row
    each = max(1, round(drafts.tokens / drafts.drafts)) if drafts.drafts else None
    count = row["spec_tokens"] = count or len(drafts.by_position) or each
    if drafts.accepted > drafts.tokens:
        return row  # some engine tells but a part of its counters
    row["spec_acceptance"] = drafts.accepted / drafts.tokens
    if drafts.drafts:
        row["spec_tokens_per_step"] = 1 + drafts.accepted / drafts.drafts
        shares = [round(one / drafts.drafts, 4) for one in drafts.by_position]
        row["spec_by_position"] = json.dumps(shares) if shares else None
    elif drafts.emitted and count:
        row["spec_tokens_per_step"] = drafts.emitted * count / drafts.tokens
    return row


def notes(config: Config, row: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a row should know of it."""
    found = [NOT_TEXT] if row.get("spec_text") is False else []
    if row.get("spec_tokens", 0) != 0 and row.get("spec_acceptance") is None:
        found.append(
            "speculative decoding is on, but the service's counters tell of no draft, or of a part of them alone"
        )
    return found
