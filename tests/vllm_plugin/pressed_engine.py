"""One vLLM with little memory that reads prompts in small pieces: `python pressed_engine.py REQUEST ANSWER`.

See test_serving_draw.py.
"""

import json
import sys
from pathlib import Path

from serving_parts import Engine


def main(request: Path, answer: Path) -> None:
    asked = json.loads(request.read_text())
    little = {"num_gpu_blocks_override": asked["blocks"], "max_num_batched_tokens": 64, "disable_log_stats": False}
    engine = Engine(Path(asked["policy"]), **little)
    for _, sampling in asked["asks"]:
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling.get("logit_bias", {}).items()}
    written = engine.sample([({"prompt_token_ids": ids}, None, sampling) for ids, sampling in asked["asks"]])
    counts = {metric.name: getattr(metric, "value", None) for metric in engine.llm.get_metrics()}
    answer.write_text(json.dumps({"tokens": written, "preemptions": counts["vllm:num_preemptions"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
