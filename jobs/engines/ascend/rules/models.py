"""What a release asks of the model (M1 to M3)."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.engines.ascend import mended, version
from jobs.engines.ascend.rules.base import Problem, Question, rule, table

_LONGEST_KPOOL = 155_000
"""Tokens beyond which GLM-5.3-Flash hangs on A2 (vllm-ascend issue 15984, 0.30.0rc1)."""


@rule("M1", "error", "all", "vllm-ascend v0.23.0 and 0.30.0rc2, tutorials of the models")
def model_of_the_release(q: Question) -> Iterator[Problem]:
    """A release serves the models that it knows."""
    if q.release is None:
        return
    asked = [(version(since), what, since, source) for what, (since, source) in table("models").items()]
    found = [one for one in asked if one[1] in _kinds(q) and one[0] > q.release.version]
    if found:
        _, what, since, source = max(found)
        reason = f"{what} are served from release {since} on"
        yield Problem("engine.release", q.release.name, reason, f"Choose {mended(since)} or later.", source=source)


@rule("M2", "warning", ">=0.30", "vllm-ascend issue 15984")
def pooled_indexer(q: Question) -> Iterator[Problem]:
    """The state of a pooled indexer is counted by the token, so that long requests wait for ever."""
    length = q.config.parallel.max_model_len
    if q.arch and q.arch.indexer and q.arch.indexer.pool > 1 and length > _LONGEST_KPOOL:
        reason = f"requests above about {_LONGEST_KPOOL:,} tokens hang on A2, however large the KV cache"
        yield Problem("parallel.max_model_len", length, reason, f"Stay at or below {_LONGEST_KPOOL}.")


@rule("M3", "warning", ">=0.23", "vllm-ascend v0.23.0.post1, ascend_config.py: both keys `and use_sparse`")
def sparse_caches(q: Question) -> Iterator[Problem]:
    """Keys for the caches of sparse attention, at a model that has none: nothing is measured by them."""
    for name in ("enable_sparse_sfa_c8", "enable_sparse_li_c8"):
        if q.additional.get(name) and q.arch and q.arch.indexer is None:
            reason = "the model has no sparse attention: the engine turns it off and says nothing"
            yield Problem(f"engine.additional_config.{name}", True, reason, "Leave it out for this model.")


def _kinds(q: Question) -> set[str]:
    """Return which of the kinds of models in tables.yaml this one is."""
    name, arch = f"{q.config.model.name} {q.config.model.path}".lower().replace("_", "-"), q.arch
    kinds = {"Kimi-K2.5 models"} if "kimi-k2-5" in name or "kimi-k2.5" in name else set()
    if arch is None or arch.indexer is None:
        return kinds
    latent = arch.layers - (len(arch.linear.layers) if arch.linear else 0)
    return kinds | {
        "models with sparse attention",
        *(["models with shared indexers"] if len(arch.indexer.layers) < latent else []),
        *(["models with linear and sparse attention"] if arch.linear else []),
    }
