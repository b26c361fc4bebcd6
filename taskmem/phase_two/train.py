"""Phase Two: DPO on one steer vector, the policy frozen (METHOD section 4, step 5).

Everything up to the steer layer is frozen, so it is computed once (supply.py, trunk.py); both completions share their prompt
(engine.py); the reference never changes. The whole model is never in memory: first its lower half, then its upper.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.utils import CONFIG_NAME
from safetensors.torch import save_file

from taskmem.config import PhaseTwoSettings, Profile
from taskmem.errors import UserError
from taskmem.files import replace_directory
from taskmem.phase_two.cache import TrunkCache
from taskmem.phase_two.engine import Example, PairEngine
from taskmem.phase_two.fit import Fitted, document, fit
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.halves import meta_policy
from taskmem.phase_two.influence import Influence
from taskmem.phase_two.supply import TrunkSupply, Wanted
from taskmem.phase_two.trunk import Tokens
from taskmem.policy.encoding import PromptEncoder
from taskmem.policy.transformers_policy import load_processor, policy_reference
from taskmem.progress import Note, Progress, silent, unheard
from taskmem.records import Context, Preference, Rollouts, write_json
from taskmem.steer import SteerConfig, SteerLayer, scale_to_norm
from taskmem.video.frames import FramesOf

INFLUENCE = "influence.json"
KEPT_CLIPS = 64  # contexts come in a stream's order and share clips with their neighbours only


@dataclass(frozen=True)
class Pair:
    """A context with the completions to prefer and to reject, as text: they are tokenised again, with an end of turn.

    `questions` and `sources` are what the preference rests on; `candidates` are all completions of the context, which other
    environments may train on.
    """

    context: Context
    chosen: str
    rejected: str
    questions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    candidates: tuple[str, ...] = field(default=(), compare=False)


def load_pairs(
    preferences: Sequence[Preference], rollouts: Sequence[Rollouts], contexts: Sequence[Context], policy: str
) -> list[Pair]:
    """Join preferences with their rollouts and contexts.

    UserError for a preference that belongs to none, and for rollouts of another policy than the one of digest `policy`: a new
    pi_0 invalidates every cache (METHOD section 4, step 1).
    """
    if foreign := next((r for r in rollouts if r.policy != policy), None):
        raise UserError(
            f"rollouts of context {foreign.context}: written by policy {foreign.policy[:12]}, not by {policy[:12]}; "
            "build the rollout cache again"
        )
    cached = {r.context: r for r in rollouts}
    known = {c.id: c for c in contexts}
    pairs = []
    for preference in preferences:
        if preference.context not in cached:
            raise UserError(f"preference of context {preference.context}: not in the rollout cache; mine it again")
        if preference.context not in known:
            raise UserError(f"preference of context {preference.context}: its segments are missing; give --segments")
        text = {c.index: c.text for c in cached[preference.context].candidates}
        if not {preference.chosen, preference.rejected} <= text.keys():
            raise UserError(f"preference of context {preference.context}: no such candidate; mine it again")
        completions = (text[preference.chosen], text[preference.rejected])
        rests_on = (preference.questions, preference.sources)
        pairs.append(Pair(known[preference.context], *completions, *rests_on, candidates=tuple(text.values())))
    return pairs


def train_phase_two(
    policy: FrozenPolicy,
    pairs: Sequence[Pair],
    frames_of: FramesOf,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    cache: Path | None = None,
    note: Note = unheard,
) -> Path:
    """Train one adapter from zero on all of `pairs` and write it to the folder `out`.

    It gets PEFT's two files and training.json; influence.json if sources are known or capped; gradients.safetensors if they are
    to be kept. Trunk states are kept in the folder `cache`, which may be shared with other runs, or in memory without one; the
    adapter is the same, and `note` is told how many were computed. The reference is the policy with the adapter off. UserError
    without pairs, if the vector is not finite, or if `out` holds something that is no adapter.
    """
    settings = profile.phase_two
    if not pairs:
        raise UserError(f"{out}: no preference pairs to train on; collect more feedback or mine more contexts")
    check_replaceable(out)
    encoder = _encoder(policy, frames_of, profile)
    wanted, examples = _encode(pairs, encoder)
    supply = _supply(policy, encoder, settings, cache)
    trunks = supply.trunks(wanted)
    kept = len(wanted) - supply.computed
    note(f"{len(pairs)} pairs of {len(wanted)} contexts; trunks: {supply.computed} computed, {kept} from the cache")
    engine = PairEngine(policy.upper(settings.layer), trunks, examples)
    done = fit(engine, examples, [p.sources for p in pairs], settings, seed, progress)
    return _save(policy.path, policy.checkpoint.digest, pairs, done, settings, out)


def prepare_trunks(
    policy: FrozenPolicy, pairs: Sequence[Pair], frames_of: FramesOf, profile: Profile, cache: Path
) -> int:
    """Compute the trunks of `pairs` that are not in the folder `cache` yet; returns of how many contexts.

    For the pairs of many environments at once: the lower half is then loaded once, not once for each. UserError as training.
    """
    encoder = _encoder(policy, frames_of, profile)
    supply = _supply(policy, encoder, profile.phase_two, cache)
    supply.trunks(_encode(pairs, encoder)[0])
    return supply.computed


def _encoder(policy: FrozenPolicy, frames_of: FramesOf, profile: Profile) -> PromptEncoder:
    return PromptEncoder(load_processor(policy.path), profile.policy, frames_of, KEPT_CLIPS)


def _supply(
    policy: FrozenPolicy, encoder: PromptEncoder, settings: PhaseTwoSettings, cache: Path | None
) -> TrunkSupply:
    store = TrunkCache(cache, settings.trunk_cache_bytes) if cache else None
    return TrunkSupply(policy.checkpoint, settings.layer, encoder, store, make_room=policy.release)


def check_replaceable(out: Path) -> None:
    """UserError if `out` is anything but an adapter's folder, an empty one, or not there yet."""
    if out.exists() and not (out / CONFIG_NAME).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something that is no adapter, which would be lost; give another folder or name")


def _encode(pairs: Sequence[Pair], encoder: PromptEncoder) -> tuple[list[Wanted], list[Example]]:
    """Each context once with the completions of all its pairs, and the pairs as tokens."""
    numbers: dict[str, int] = {}
    contexts: list[Pair] = []
    examples = []
    for pair in pairs:
        if pair.context.id not in numbers:
            numbers[pair.context.id] = len(contexts)
            contexts.append(pair)
        tokens = (encoder.completion_ids(pair.chosen), encoder.completion_ids(pair.rejected))
        examples.append(Example(numbers[pair.context.id], *tokens))
    needed: list[list[Tokens]] = [[] for _ in contexts]
    for example in examples:
        needed[example.context] += [example.chosen, example.rejected]
    wanted = [
        Wanted(
            pair.context, tuple(dict.fromkeys(tokens)), tuple(encoder.completion_ids(text) for text in pair.candidates)
        )
        for pair, tokens in zip(contexts, needed, strict=True)
    ]
    return wanted, examples


def _save(
    policy: Path, digest: str, pairs: Sequence[Pair], done: Fitted, settings: PhaseTwoSettings, out: Path
) -> Path:
    trained_norm = float(done.vector.norm())
    if not math.isfinite(trained_norm) or trained_norm == 0:
        raise UserError(f"{out}: the vector's norm is {trained_norm} after training; lower phase_two.learning_rate")
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    _save_adapter(policy, digest, done.vector, settings, temporary)
    write_json(temporary / "training.json", document(done, trained_norm))
    if done.influence:
        write_json(temporary / INFLUENCE, _influence(pairs, done.influence))
    if done.gradients:
        kept = {f"step_{number:05d}": of_pairs for number, (_, of_pairs) in enumerate(done.gradients, 1)}
        chosen = {f"pairs_{number:05d}": torch.tensor(batch) for number, (batch, _) in enumerate(done.gradients, 1)}
        save_file({**kept, **chosen}, temporary / "gradients.safetensors")
    replace_directory(temporary, out)
    return out


def _save_adapter(policy: Path, digest: str, vector: torch.Tensor, settings: PhaseTwoSettings, folder: Path) -> None:
    """PEFT writes its own files, from a model that has no weights but the vector."""
    steered: Any = get_peft_model(meta_policy(policy), SteerConfig(layer=settings.layer))
    layer = next(module for module in steered.modules() if isinstance(module, SteerLayer))
    layer.steer_vector["default"] = torch.nn.Parameter(vector)
    if settings.target_norm is not None:
        scale_to_norm(steered, settings.target_norm)
    steered.peft_config["default"].base_model_name_or_path = policy_reference(digest)
    steered.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _influence(pairs: Sequence[Pair], influence: Influence) -> dict[str, Any]:
    """What influence.json holds: each pair with what it rests on, and each source's part in the training."""
    of_pairs = [
        {"context": p.context.id, "questions": list(p.questions), "sources": list(p.sources), **influence.pair(i)}
        for i, p in enumerate(pairs)
    ]
    return {"sources": influence.sources(), "pairs": of_pairs}
