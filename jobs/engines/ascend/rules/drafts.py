"""Speculative decoding: what drafts tokens, and what that needs (S1 to S5, R26, R32, L5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.engines.ascend.rules.base import Problem, Question, rule
from jobs.engines.speculation import ALONE, asked_of, speculation_of

FLAG = "engine.args.speculative-config"
CONFIG = "vllm, config/speculative.py"
_WITHOUT_MODEL = ("ngram", "[ngram]", "ngram_gpu", "suffix", "extract_hidden_states", "dspark")
"""Methods that draft without any model; multi-token prediction has it in the checkpoint."""


def _drafts_alone(q: Question, asked: dict[str, Any]) -> bool:
    method, at = str(asked.get("method") or ""), q.described.version
    early = at < (0, 13) and method in _OWN  # it takes DeepSeek's own checkpoint for these too
    unnamed = at[:2] == (0, 11) and not method and "num_speculative_tokens" in asked
    return bool(asked.get("model")) or method in _WITHOUT_MODEL or method.endswith("mtp") or early or unnamed


_OWN = ("eagle", "medusa", "mlp_speculator")


@rule("S1", "error", ">=0.9", CONFIG)
def drafter(q: Question) -> Iterator[Problem]:
    """Something must draft, and without a draft model it must be said how many tokens."""
    asked, given = asked_of(q.config), q.settings.get("speculative-config")
    if not asked and given is None:
        return
    method = str(asked.get("method") or "")
    if not _drafts_alone(q, asked):
        reason = f"method {method} drafts with a model of its own" if method else "nothing says what drafts the tokens"
        yield Problem(f"{FLAG}.model", None, reason, "Name the draft model, or set method to mtp, ngram or suffix.")
    elif asked.get("num_speculative_tokens") is None and not (asked.get("model") or method == "suffix"):
        reason = "it is needed where no draft model is named"
        yield Problem(f"{FLAG}.num_speculative_tokens", None, reason, "Give the tokens to draft for one step.")


@rule("S2", "error", ">=0.9", CONFIG)
def sizes_of_drafts(q: Question) -> Iterator[Problem]:
    """The drafter's own sizes follow from those of the model."""
    asked, tp = asked_of(q.config), q.config.parallel.tensor_parallel_size
    ranks, least, most = (asked.get(name) for name in ("draft_tensor_parallel_size", *_LOOKUP))
    if q.described.version < (0, 13):  # its fields have no ranges of their own
        for name, low in _LEAST.items():
            value = asked.get(name)
            if value is not None and (type(value) is not int or value < low):
                yield Problem(f"{FLAG}.{name}", value, f"a whole number from {low} on is needed", "Mend the value.")
    form = asked.get("quantization")
    if form not in (None, "ascend") and (0, 11) <= q.described.version < (0, 23):
        yield Problem(f"{FLAG}.quantization", form, "NPUs have ascend only", "Leave it out: it is the model's own.")
    if type(ranks) is int and ranks not in (1, tp) and not str(asked.get("method")).startswith("ngram"):
        reason = f"it must be 1 or parallel.tensor_parallel_size = {tp}"
        yield Problem(f"{FLAG}.draft_tensor_parallel_size", ranks, reason, "Leave it out.")
    if type(least) is int and type(most) is int and least > most:
        yield Problem(f"{FLAG}.{_LOOKUP[0]}", least, f"it is above {_LOOKUP[1]} = {most}", "Lower it.")
    length, longest = asked.get("max_model_len"), q.config.parallel.max_model_len
    if type(length) is int and length > longest:
        reason = f"it is above parallel.max_model_len = {longest}"
        yield Problem(f"{FLAG}.max_model_len", length, reason, "Leave it out.")


_LOOKUP = ("prompt_lookup_min", "prompt_lookup_max")
_LEAST = {"num_speculative_tokens": 1, **dict.fromkeys(_LOOKUP, 1), "disable_by_batch_size": 2}


@rule("S3", "error", ">=0.23", "vllm 0.23.0, engine/arg_utils.py: mutually exclusive")
def said_twice(q: Question) -> Iterator[Problem]:
    """A flag of its own, and the same name inside --speculative-config."""
    inside = q.inside("speculative-config")
    for flag, name in ALONE.items():
        value = q.settings.get(flag.replace("_", "-"))
        if value is not None and name in inside:
            key = f"engine.args.{flag.replace('_', '-')}"
            yield Problem(key, value, f"--speculative-config has {name} too", "Remove one of them.")


@rule("S4", "error", ">=0.23", CONFIG)
def made_up_acceptance(q: Question) -> Iterator[Problem]:
    """A synthetic acceptance needs to be told."""
    asked = asked_of(q.config)
    rates = [one for one in ("synthetic_acceptance_rates", "synthetic_acceptance_length") if asked.get(one) is not None]
    if asked.get("rejection_sample_method") == "synthetic" and len(rates) != 1:
        reason = "it needs synthetic_acceptance_rates or synthetic_acceptance_length, and not both"
        yield Problem(f"{FLAG}.rejection_sample_method", "synthetic", reason, "Give one of them.")


@rule("S5", "error", "<0.18", "vllm 0.9.1, engine/arg_utils.py, V1; 0.11.0 and 0.13.0, config/speculative.py")
def methods_of_later_releases(q: Question) -> Iterator[Problem]:
    """Methods that this release does not have, or not for the models that are served here."""
    method, name = asked_of(q.config).get("method"), f"{q.config.model.name} {q.config.model.path}".lower()
    refused = ["draft_model", *(["mlp_speculator"] if q.described.version < (0, 11) else [])]
    refused += ["eagle3"] if not any(one in name for one in _EAGLE3) else []
    if method in refused:
        reason = "this release does not draft so for this model"
        yield Problem(f"{FLAG}.method", method, reason, "Set mtp or ngram (0.9.1: deepseek_mtp), or a later release.")


_EAGLE3 = ("llama", "qwen", "minicpm", "gpt-oss", "gpt_oss")
"""Models that EAGLE 3 drafts for in these releases."""


@rule("R26", "error", "0.11", "vllm 0.11.0, engine/arg_utils.py: not supported with async scheduling")
def async_and_drafts(q: Question) -> Iterator[Problem]:
    """0.11 does not speculate with async scheduling."""
    if q.on("async-scheduling") and speculation_of(q.config):
        reason = "speculative decoding does not work with async scheduling in this release"
        yield Problem("engine.args.async-scheduling", True, reason, "Remove it, or engine.args.speculative-config.")


@rule("R32", "error", ">=0.13", "vllm, config/vllm.py: async scheduling explicitly enabled, hard fail")
def async_and_others(q: Question) -> Iterator[Problem]:
    """What async scheduling, where it is asked for, does not go with; where it is not, vLLM leaves it off by itself."""
    if not q.on("async-scheduling"):
        return
    key, asked, early = "engine.args.async-scheduling", asked_of(q.config), q.described.version < (0, 18)
    method = str(asked.get("method") or asked.get("model") or "").strip("[]")
    if asked.get("method") is None and method != "ngram":
        method = ""  # the draft model tells it
    goes = method.endswith("mtp") or "eagle" in method or (not early and method in ("draft_model", "ngram_gpu"))
    if asked and method and not goes and method not in _LATER_ONES:
        yield Problem(key, True, f"it does not work with drafts by {method}", "Remove it.")
    if asked.get("disable_padded_drafter_batch") is True:
        yield Problem(f"{FLAG}.disable_padded_drafter_batch", True, "async-scheduling is on too", "Remove one of them.")
    if q.settings.get("distributed-executor-backend") == "ray" and q.described.version < (0, 23):
        yield Problem(key, True, "it does not work with the executor ray", "Remove it.")
    if early and q.size("pipeline-parallel-size") > 1:
        yield Problem(key, True, "it does not work with pipeline stages in this release", "Remove it.")


_LATER_ONES = ("dflash", "dspark", "extract_hidden_states")
"""Methods of newer releases that draft as EAGLE does."""


@rule(
    "L5",
    "error",
    "0.18..0.23",
    "vllm-ascend v0.23.0, platform.py, _validate_pd_pp_mtp_config; vllm 0.18.0, config/model.py",
)
def stages_and_mtp(q: Question) -> Iterator[Problem]:
    """Multi-token prediction over pipeline stages: not in 0.18, and in 0.23 on prefill nodes alone."""
    transfer = q.inside("kv-transfer-config")
    if q.speculative and q.size("pipeline-parallel-size") > 1 and transfer.get("kv_role") != "kv_producer":
        reason = (
            "multi-token prediction over pipeline stages is for prefill nodes (kv_role=kv_producer) in this release"
        )
        remedy = "Remove engine.args.speculative-config, or set parallel.pipeline_parallel_size=1."
        yield Problem(FLAG, q.settings.get("speculative-config"), reason, remedy)
