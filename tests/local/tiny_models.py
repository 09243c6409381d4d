"""Starts models on vLLM's CPU build, one after the other: a program for the Python of `.engines/vllm_cpu`.

    python tiny_models.py STUBS FOLDER... > ANSWERS

A line of JSON for each folder: the tokens that came, or the error that the engine ended with. vLLM is imported once,
and each model is a fork. What classes for pictures import and do not use is stood in for.
"""

# ruff: noqa: E402 - the order of imports is what it is about
import json
import os
import sys
import traceback

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, sys.argv[1])
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from standin import Finder
from transformers.utils import import_utils

import_utils.is_torchvision_available()
sys.meta_path.append(Finder(lambda name: name.split(".")[0] == "torchvision"))
import vllm
import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker
from vllm.model_executor.models import registry

registry._LazyRegisteredModel.inspect_model_cls = lambda self: registry._ModelInfo.from_model_cls(self.load_model_cls())


def generate(folder: str) -> int:
    """Return how many tokens a model of random weights answers with."""
    sizes = {"max_model_len": 64, "max_num_seqs": 2, "max_num_batched_tokens": 64}
    off = {"load_format": "dummy", "enforce_eager": True, "skip_tokenizer_init": True, "language_model_only": True}
    engine = vllm.LLM(folder, **sizes, **off)
    wanted = vllm.SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False)
    [found] = engine.generate([{"prompt_token_ids": [5, 6, 7]}], wanted, use_tqdm=False)
    return len(found.outputs[0].token_ids)


for place in sys.argv[2:]:
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    try:
        answer = {"tokens": generate(place)}
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)
