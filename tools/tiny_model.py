"""Write a tiny model: `python tiny_model.py tiny_llama DIRECTORY`. Needs the `tokenizers` library.

A model here is a configuration, a tokenizer trained on the text below and no weights: the engine is started
with `--load-format dummy`, which makes random ones. The directory must not exist; it is made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 2048
WINDOW = 131072
"""Longest sequence in tokens: the longest window that the sweeps ask for."""

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, BOS, EOS, *ROLES)
"""They get the ids 0 to 5; the bytes follow, then the merges: ids from 100 on are ordinary tokens."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SENTENCES = (
    "A long prompt is read in chunks, and each chunk fills the key and value cache of one rank.",
    "The head answers requests, and every headless rank waits for its share of the work.",
    "When the batch grows, the time of one step grows with it, while the tokens of each second still rise.",
    "Which window fits into the memory that the weights leave free? Measure it before you promise it.",
    "A service that loads for half an hour should not be started twice for the same question.",
    "The first token is late because the queue is long; the next ones are late because the batch is large.",
    "Two nodes, sixteen processors, one network card that must carry every exchange between them.",
    "一次测量胜过十次猜测。模型的权重很大，加载一次就要回答所有能回答的问题。",
    "上下文越长，缓存越大，同时服务的请求就越少。",
)


def training_text() -> Iterator[str]:
    """Yield the sentences, then numbers and made-up words: enough distinct pairs to fill the vocabulary."""
    yield from SENTENCES
    yield from (f"{number} {number * 7919 % 100000}" for number in range(1000))
    onsets = ("b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "pl")
    vowels = ("a", "e", "i", "o", "u", "ea", "ou")
    codas = ("", "n", "r", "s", "t", "l", "ng")
    words = ["".join(parts) for parts in itertools.product(onsets, vowels, codas)]
    for first, second in zip(words, reversed(words), strict=True):
        yield f"{first} {second}{first} {first}{second}"


def write_tokenizer(directory: Path) -> None:
    """Train a byte-level BPE tokenizer and write the files that transformers reads."""
    # The tool's own environment, which the type checker sees, has no tokenizers.
    from tokenizers import (  # type: ignore[import-not-found]
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        sys.exit(f"the text gives {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": WINDOW,
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", settings)


def common() -> dict[str, Any]:
    """Return what both architectures share. Grouped-query attention: two query heads share a KV head."""
    return {
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": WINDOW,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "pad_token_id": SPECIAL.index(PAD),
        "bos_token_id": SPECIAL.index(BOS),
        "eos_token_id": SPECIAL.index(EOS),
    }


CONFIGS: Mapping[str, dict[str, Any]] = {
    "tiny_llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "mlp_bias": False,
        "pretraining_tp": 1,
        **common(),
    },
    "tiny_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        **common(),
    },
}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON file that people can read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_model(name: str, directory: Path) -> None:
    """Write the model `name` into a new directory."""
    directory.mkdir(parents=True)
    config = CONFIGS[name]
    write_json(directory / "config.json", config)
    write_json(
        directory / "generation_config.json",
        {key: config[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )
    write_tokenizer(directory)


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(CONFIGS))
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    write_model(args.name, args.directory)


if __name__ == "__main__":
    main()
