"""Each new model's two-node recipe on the rehearsal engine, with both ranks: real processes, one sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_rehearsal import ROOT, SHORT, engines, start, the_sweep

from jobs.core.files import read_json

pytestmark = pytest.mark.usefixtures("warm")

RECIPES = sorted(path.stem for path in (ROOT / "conf/experiment").glob("official_[!0-9]*.yaml"))


BUSY = "the client was starved of its processor"
"""What this machine does beside may make of a window: its figures are not what is tested."""


def test_the_recipes_of_the_models_are_rehearsed_by_both_ranks(tmp_path: Path) -> None:
    few = ("bench.input_tokens=256", "bench.output_tokens=16", "cluster=local", f"experiment={','.join(RECIPES)}")
    started = start(tmp_path, *SHORT, *few)
    output, _ = started.communicate(timeout=280)
    assert started.returncode in (0, 1), output[-3000:]
    sweep = the_sweep(tmp_path)
    table = pd.read_parquet(sweep.table("parquet")).set_index("model.name")
    assert len(table) == len(RECIPES) >= 5
    assert {name.rpartition("_w")[0] for name in table.index} == {name.removeprefix("official_") for name in RECIPES}
    wrong = [why for why in table["invalid_reason"].dropna() if not why.startswith(BUSY)]
    assert wrong == []
    assert (table["completed"] > 0).all() and (table["failed"] == 0).all()
    assert (table["predicted_kv_tokens"] == table["kv_cache_tokens"]).all(), "the plan adds up what the engine adds up"
    for name, row in table.iterrows():
        ranks = json.loads(row["engine_tokens"])
        assert len(ranks) == row["parallel.data_parallel_size"] and min(ranks.values()) > 0, name
        assert row["spec_tokens"] > 0, name
        service = sweep.service(row["service"], 1)
        argv = [read_json(service.rank(rank).command)["argv"] for rank in (0, 1)]
        assert ["--headless" in one for one in argv] == [False, True], name
        found = [one for rank in (0, 1) for one in read_json(service.rank(rank).effective)["differences"]]
        assert not [one for one in found if one["error"]], name  # a preloaded library may not be here
    assert engines(tmp_path) == []
