"""One vLLM under torch.compile: usage `python compiled_engine.py REQUEST ANSWER`, see test_serving_compile.py.

vLLM turns compilation off where a CPU serves LoRA; here it is left on, as it is on a GPU.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(request: Path, answer: Path) -> None:
    os.environ["VLLM_CPU_CI_ENV"] = "1"  # traced, not compiled to machine code
    from vllm.platforms.cpu import CpuPlatform  # noqa: PLC0415

    check = CpuPlatform.check_and_update_config.__func__

    def keep_compiling(cls: Any, config: Any) -> None:
        lora, config.lora_config = config.lora_config, None
        check(cls, config)
        config.lora_config = lora

    CpuPlatform.check_and_update_config = classmethod(keep_compiling)
    import torch._dynamo.utils  # noqa: PLC0415
    from serving_parts import Engine  # noqa: PLC0415

    asked = json.loads(request.read_text())
    engine = Engine(Path(asked["policy"]), enforce_eager=False)
    for name, folder in asked["adapters"].items():
        engine.load(name, Path(folder))
    written = engine.write([({"prompt_token_ids": ids}, name) for ids, name in asked["asks"]])
    counters = torch._dynamo.utils.counters
    found = {
        "tokens": [reply.tokens for reply in written],
        "frames": counters["frames"].get("ok", 0),
        "breaks": dict(counters["graph_break"]),
    }
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
