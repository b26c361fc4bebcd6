"""A checkpoint folder, perhaps with an adapter, as the policy that writes memories."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel

from taskmem.backends import opened_remote
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.policy.http import HttpPolicy, Vocabulary
from taskmem.policy.protocols import Policy
from taskmem.policy.transformers_policy import (
    TransformersPolicy,
    load_checkpoint,
    policy_digest,
    policy_reference,
    prepare_process,
)
from taskmem.records import read_json
from taskmem.stages.common import Footage
from taskmem.steer import read_adapter
from taskmem.video.frames import FramesOf


def load_policy(path: Path, profile: Profile, frames_of: FramesOf, adapter: Path | None = None) -> TransformersPolicy:
    """The policy of a checkpoint folder, steered by the adapter in `adapter` if one is given."""
    prepare_process()
    model, processor = load_checkpoint(path)
    policy = TransformersPolicy.of(model, processor, profile.policy, frames_of, policy_digest(path))
    if adapter is not None:
        try:
            read_adapter(adapter)
            trained_on = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path"))
            if trained_on != (wanted := policy_reference(policy.digest)):
                raise ValueError(f"trained on {trained_on[:19]}, not on the policy {wanted[:19]}; train it again")
            # PEFT puts the steer layer into `model` itself, which the policy goes on using
            PeftModel.from_pretrained(model, str(adapter))
        except (ValueError, OSError) as error:
            raise UserError(f"{adapter}: {error}") from None
        policy.adapter = adapter.name
    return policy


@contextmanager
def frozen_policy(path: Path, profile: Profile, film: Footage, segments: Path, out: Path) -> Iterator[Policy]:
    """The policy of a checkpoint folder without adapter, for a stage that writes to `out`: in this process, or served.

    It is the profile's `calls.policy` that says so. `segments` is the folder of `film`. UserError if the server fails, or serves
    another policy.
    """
    if profile.world is not None or profile.calls is None or profile.calls.policy is None:
        yield load_policy(path, profile, film.frames_of)
        return
    with opened_remote(profile, segments, out) as remote:
        assert remote is not None
        yield HttpPolicy(remote.endpoint, profile.policy, remote.clips, Vocabulary.load(path), policy_digest(path))
