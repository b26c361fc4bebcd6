"""The site is part of the one compiled graph, and steers in it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from plugin_parts import AdapterPress, drawn

if TYPE_CHECKING:
    from serving_parts import Engine

pytestmark = pytest.mark.serving


def test_a_compiled_engine_steers_as_an_uncompiled_one(
    engine: "Engine", exported: Path, press: AdapterPress, tmp_path: Path
) -> None:
    adapters = {f"compiled{i}@v1": str(press.save(tmp_path / str(i), drawn(50 + i, 6))) for i in range(3)}
    asks = [([1, *range(20, 20 + length)], name) for length in (5, 30, 90) for name in (None, *adapters)]
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(json.dumps({"policy": str(exported), "adapters": adapters, "asks": asks}))
    script = Path(__file__).with_name("compiled_engine.py")
    run = subprocess.run([sys.executable, str(script), str(request), str(answer)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    compiled = json.loads(answer.read_text())
    for name, folder in adapters.items():
        engine.load(name, Path(folder))
    written = engine.write([({"prompt_token_ids": ids}, name) for ids, name in asks])
    assert compiled["tokens"] == [list(reply.tokens) for reply in written]
    assert len({reply.logps for reply in written}) == len(asks)
    assert (compiled["frames"], compiled["breaks"]) == (1, {})
