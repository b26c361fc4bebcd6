"""Where the deployment finds an agent that is not in its own process. Plain data; stages/deployed.py acts on it."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from taskmem.settings import Positive, Settings

Url = Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]


class LocalServices(Settings):
    """Policy server, gateway and agent as processes of this machine, for as long as the deployment lasts.

    `environment` is the folder of an environment with vLLM, as `make serving-setup` builds one; `vllm` are further words for
    `vllm serve`. float32 gives the very memories that transformers writes.
    """

    environment: Annotated[str, Field(min_length=1)]
    vllm: list[str]
    start_seconds: Positive


class RunningAgent(Settings):
    """An agent that is served already, with the policy that is to be deployed.

    `tokens` is the path of a mounted JSON file {environment: token}: a secret, which no profile holds.
    """

    url: Url
    tokens: Annotated[str, Field(min_length=1)]


class ServingSettings(Settings):
    """Either of both."""

    local: LocalServices | None
    running: RunningAgent | None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.local is None) == (self.running is None):
            raise ValueError("give one of local and running")
        return self
