"""Steer adapters and the shared draw inside vLLM: one base model, the adapter chosen per request by vLLM's own LoRA machinery.

`taskmem serve policy DIR` starts vLLM with a policy that `taskmem export` wrote and with everything that belongs to it
(`server.vllm_words`): the steer layer and its bound in --additional-config, LoRA with one target, the logits processor `draw`,
and video as the profile's clips are. An adapter folder as `taskmem.steer` saves it is then loaded as a LoRA adapter, by a name
that never changes its meaning: environment@version. Nothing here imports vLLM or torch before vLLM calls `register`.
"""


def register() -> None:
    """vLLM's entry point (group vllm.general_plugins), called once or more in each of its processes.

    RuntimeError, which ends vLLM at its start, if it is not the version that the patches were written for.
    """
    from taskmem.vllm_plugin.patches import apply  # noqa: PLC0415 - the entry point must load without vLLM

    apply()
