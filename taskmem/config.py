"""Profiles: typed settings, validated at the edge and passed down.

A profile is a YAML file. `qwen3-vl-30b.yaml` states every value; another profile `extends` it and lists its `deviations`, each
with a reason, so that no value can differ from the paper's without saying why.
"""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from taskmem.cluster import ClusterSettings, Spread
from taskmem.errors import UserError
from taskmem.roles import CallSettings
from taskmem.serving import ServingSettings
from taskmem.settings import Count, NonNegative, Positive, Settings, Share


class VideoLimits(Settings):
    """What a single video may cost before it is refused (header checks) or cut (while decoding)."""

    max_bytes: Count
    max_pixels: Count  # width x height of one decoded frame
    max_seconds: Positive  # stream time; the rest is cut off and listed
    max_fps: Positive  # decoded frames per second of stream time
    max_subtitle_bytes: Count


class VideoSettings(Settings):
    """How a stream is cut and sampled."""

    segment_seconds: Positive
    fps: Positive  # frames kept per second
    longest_side: Annotated[int, Field(ge=16, multiple_of=2)]  # pixels; aspect kept, never enlarged, sides made even
    limits: VideoLimits


class Sampling(Settings):
    """How completions are drawn; top_k 0 means no limit."""

    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0)]


class PolicySettings(Settings):
    """The memorization policy's context and output."""

    window: Count  # segments in a context, the current one included (k)
    instruction: str  # opens every prompt; may be empty
    task_questions: Count  # recent questions that the task-prompt arm shows
    prompt_order: Literal["video_first", "memory_first"]
    max_completion_tokens: Count
    sampling: Sampling


class FormatTerm(Settings):
    """r_fmt; a violation also zeroes every other term."""

    valid: float
    violation: float


class LengthTerm(Settings):
    """r_len: `within` up to `soft` tokens, linear to `beyond` at `hard` tokens."""

    measure: Literal["thinking", "memory"]
    soft: Count
    hard: Count
    within: float
    beyond: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.hard <= self.soft:
            raise ValueError("hard must be above soft")
        return self


class QualityTerm(Settings):
    """r_qual: `passed` if every verdict holds, else `failed`; a memory over `memory_budget` tokens fails."""

    passed: float
    failed: float
    memory_budget: Count


class RichnessTerm(Settings):
    """r_rich: `weight` times the normalised rank among the candidates in `pool`."""

    weight: NonNegative
    pool: Literal["valid", "formatted"]  # valid: format kept and quality passed; formatted: format kept


class RewardSettings(Settings):
    """METHOD section 3's terms, every weight a setting."""

    format: FormatTerm
    length: LengthTerm
    quality: QualityTerm
    richness: RichnessTerm
    std_floor: NonNegative  # advantage = (r - mean) / max(std, std_floor)
    nsr_gate: bool  # a negative advantage counts only where the sample's own reward is negative


class HistorySettings(Settings):
    """On-policy history: Extend until n_min clips, Resample after n_max, between them Extend with a probability."""

    n_min: Count
    n_max: Count
    extend_probability: Share

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.n_max < self.n_min:
            raise ValueError("n_max must not be below n_min")
        return self


class PhaseOneSettings(Settings):
    """GSPO (METHOD section 3)."""

    group_size: Annotated[int, Field(ge=2)]
    batch: Count  # contexts a step
    mini_batch: Count  # contexts an optimiser update
    learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    clip_low: Positive
    clip_high: Positive
    kl: NonNegative
    off_policy_steps: Annotated[int, Field(ge=0)]
    on_policy_steps: Annotated[int, Field(ge=0)]
    history: HistorySettings
    validate_every: Count  # steps between validations, which are also the checkpoints
    spread: Spread

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % self.mini_batch:
            raise ValueError("batch must be a multiple of mini_batch")
        return self


class MiningSettings(Settings):
    """Rollout cache, comparisons and pair selection (METHOD section 4, steps 1 to 4)."""

    candidates: Annotated[int, Field(ge=2)]
    contexts: Count | None  # at most this many, drawn from the seed; null = all
    recent_questions: Count
    questions_per_source: Count | None  # at most so many of the recent ones count of one source; null = all
    questions_shown: Count
    pairs_per_context: Count | None  # the best so many; null = all that are admissible
    max_token_difference: Count
    memory_budget: Count
    thinking_budget: Count


class StoppingSettings(Settings):
    """When training stops before its last step: the vector with the best win rate on held-out contexts is kept."""

    held_out: Annotated[float, Field(gt=0, lt=1)]  # share of the contexts, drawn from the seed
    every: Count  # steps between validations
    patience: Count  # validations without a rise before it stops


class PhaseTwoSettings(Settings):
    """DPO on one steer vector (METHOD section 4, step 5)."""

    layer: Annotated[int, Field(ge=0)]
    beta: Positive
    learning_rate: Positive
    steps: Count
    batch: Count  # pairs an optimiser update
    target_norm: Positive | None  # the vector is scaled to this norm at the end; null = left as trained
    loss: Literal["sigmoid", "robust"]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]  # share of pairs believed to be the wrong way round
    influence_cap: Positive | None  # bound on a source's gradient, in median norms of all sources'; null = none
    keep_gradients: bool  # write every pair's gradient of every step
    stopping: StoppingSettings | None  # null = all steps
    trunk_cache_bytes: Count  # size of the trunk cache's folder, above which the least recently used goes


class EvaluationSettings(Settings):
    """Streaming evaluation (METHOD section 5)."""

    feedback_questions: Count  # the first questions of a task, answered with Phase One memory
    bootstrap_samples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]


class GateSettings(Settings):
    """What a challenger must show before it becomes champion; a fall is champion minus challenger."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)]  # one-sided, of the win test and of the gold questions' fall
    # the floors under which nothing is promoted; none can be set so low that five questions promote
    least_wins: Annotated[int, Field(ge=6)]  # contexts that the judge decided for either side
    least_streams: Annotated[int, Field(ge=5)]  # streams in which one side is ahead
    least_gold: Annotated[int, Field(ge=6)]  # held-out questions whose answer is known from elsewhere than the champion
    focus: Share  # of the recent questions, by source, that a type needs so that its coverage is judged by gold alone
    format_fall: Share
    faithful_fall: Share
    non_redundant_fall: Share
    coverage_fall: Share  # of any question type that the environment did not ask for
    unscored: Share  # contexts the judges may leave unscored before the night counts as failed


class AdaptationSettings(Settings):
    """When an environment is adapted."""

    new_questions: Count  # questions since the last adaptation, below which the environment is skipped


class WorldSettings(Settings):
    """The embedded default: how many streams each split renders."""

    stream_segments: Count
    phase_one: Count
    deployment: Count
    development: Count
    held_out: Count


class Profile(Settings):
    """All settings of a run."""

    name: str
    video: VideoSettings
    policy: PolicySettings
    reward: RewardSettings
    phase_one: PhaseOneSettings
    mining: MiningSettings
    phase_two: PhaseTwoSettings
    evaluation: EvaluationSettings
    adaptation: AdaptationSettings
    gate: GateSettings
    cluster: ClusterSettings | None  # null in what travels to a stage: no stage decides where it runs
    calls: CallSettings | None  # null: no role is asked over HTTP
    serving: ServingSettings | None  # null: the deployment's agent works in its own process
    world: WorldSettings | None = None

    @model_validator(mode="after")
    def _adaptable(self) -> Self:
        if self.mining.recent_questions < self.adaptation.new_questions:
            raise ValueError(
                "mining.recent_questions must not be below adaptation.new_questions: none would ever be adapted"
            )
        return self


class Deviation(Settings):
    """Settings that differ from the extended profile's, and why."""

    reason: Annotated[str, Field(min_length=20)]
    settings: dict[str, Any]


class _ProfileFile(Settings):
    name: str
    extends: str
    deviations: list[Deviation]


class _ParamsFile(Settings):
    """DVC's params.yaml. What one tries needs no reason yet; what becomes a profile does."""

    seed: Annotated[int, Field(ge=0)]
    environment: str
    profile: dict[str, Any]


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        # an empty mapping says "none of these", not "as before"
        nested = isinstance(value, dict) and value and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def profile_names() -> list[str]:
    """The shipped profiles."""
    folder = resources.files("taskmem.profiles")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; ConstructorError for a repeated key."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


# 1e-05, which DVC writes for -S, is a number in YAML 1.2 and a string to PyYAML
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), [*"-+0123456789"]
)


def _read(name: str) -> tuple[str, dict[str, Any]]:
    shipped = name in profile_names()
    source = resources.files("taskmem.profiles").joinpath(f"{name}.yaml") if shipped else Path(name)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        known = ", ".join(profile_names())
        raise UserError(f"profile {name}: not found; give one of {known}, or the path of a YAML file") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML ({why}); mend the file") from None
    except RecursionError:
        raise UserError(f"{name}: not valid YAML (nested too deeply); mend the file") from None
    if not isinstance(document, dict):
        raise UserError(f"{name}: a profile is a YAML mapping; see qwen3-vl-30b.yaml")
    return str(source), document


def _resolve(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in seen:
        raise UserError(f"profile {name}: extends itself through {' -> '.join(seen)}; break the circle")
    where, document = _read(name)
    try:
        if "profile" in document:
            return _experiment(_ParamsFile.model_validate(document).profile, where, (*seen, name))
        if "extends" not in document:
            return document
        file = _ProfileFile.model_validate(document)
    except ValidationError as error:
        raise _mistake(where, error) from None
    settings = _extended(file.extends, where, (*seen, name))
    for deviation in file.deviations:
        settings = _merge(settings, deviation.settings)
    return {**settings, "name": file.name}


def _extended(name: str, where: str, seen: tuple[str, ...]) -> dict[str, Any]:
    return _resolve(name if name in profile_names() else str(Path(where).parent / name), seen)


def _experiment(settings: dict[str, Any], where: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The settings below `profile` of a params.yaml: laid over the profile it extends, or whole and without a cluster."""
    above = {key: value for key, value in settings.items() if key != "extends"}
    below = _extended(str(settings["extends"]), where, seen) if "extends" in settings else {"cluster": None}
    return _merge(below, above)


def _mistake(where: str, error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(p) for p in first["loc"]) or "the profile"
    return UserError(f"{where}: {field}: {first['msg']}; mend the field")


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or any by the path of its YAML file or of a params.yaml that holds it below `profile`.

    UserError with file and field if it is wrong.
    """
    try:
        return Profile.model_validate(_resolve(name))
    except ValidationError as error:
        raise _mistake(name, error) from None


def parse_profile(text: str) -> Profile:
    """A whole profile as one JSON document, which is how it travels to a stage; UserError with the field if it is wrong."""
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        raise _mistake("profile", error) from None


def override(profile: Profile, settings: dict[str, Any], where: str) -> Profile:
    """`profile` with `settings` laid over it; UserError naming `where` and the field if the result is no profile."""
    if not settings:
        return profile
    try:
        return Profile.model_validate_json(json.dumps(_merge(profile.model_dump(mode="json"), settings)))
    except ValidationError as error:
        raise _mistake(where, error) from None
