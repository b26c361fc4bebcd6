"""Steer adapters inside vLLM: one base model, the adapter chosen per request, through vLLM's own LoRA machinery.

Serve a policy that `taskmem export` wrote:

    vllm serve DIR --enable-lora --lora-target-modules steer --max-lora-rank 1 --max-loras 64 --max-cpu-loras 1024 \\
        --additional-config '{"steer_layer": 22, "steer_max_norm": 3.0}'

An adapter folder as `taskmem.steer` saves it is then loaded as a LoRA adapter, by a name that never changes its meaning:
environment@version. Nothing here imports vLLM or torch before vLLM calls `register`.
"""


def register() -> None:
    """vLLM's entry point (group vllm.general_plugins), called once or more in each of its processes.

    RuntimeError, which ends vLLM at its start, if it is not the version that the patches were written for.
    """
    from taskmem.vllm_plugin.patches import apply  # noqa: PLC0415 - the entry point must load without vLLM

    apply()
