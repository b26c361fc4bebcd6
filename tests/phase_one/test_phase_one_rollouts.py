"""A group of rollouts judged, rewarded and summed up, with the settings of both shipped profiles."""

import statistics

import pytest
from phase_one_parts import Richnesses, context, judges_of

from taskmem.config import RewardSettings, load_profile
from taskmem.phase_one.rollouts import Group, reward_group, summarise
from taskmem.policy.grammar import completion_for
from taskmem.policy.protocols import Completion

CONTEXT = context(0, 1)


def completion(memory: str | None, memory_tokens: int = 3, think_tokens: int = 0) -> Completion:
    text = "broken" if memory is None else completion_for(memory)
    return Completion(text, (1, 2), think_tokens, memory, memory_tokens if memory else 0)


RICH = completion("a red box in the kitchen", 6)
POOR = completion("a red box", 3)
WRONG = completion("wrong", 1)
BROKEN = completion(None)
LONG = completion("a red box in the kitchen beside a lamp", 9, think_tokens=1500)
GROUP = (RICH, POOR, WRONG, BROKEN, LONG)


@pytest.fixture
def miniature() -> RewardSettings:
    return load_profile("miniature").reward


@pytest.fixture
def paper() -> RewardSettings:
    return load_profile("qwen3-vl-30b").reward


def totals(group: Group) -> list[float | None]:
    return [reward.total for reward in group.rewards]


def normalised(rewards: list[float], floor: float = 0.0) -> list[float]:
    scale = max(statistics.stdev(rewards), floor)
    return [(r - statistics.mean(rewards)) / scale for r in rewards]


def test_the_papers_settings_give_the_papers_rewards(paper: RewardSettings) -> None:
    group = reward_group(CONTEXT, GROUP, judges_of(), paper)
    # valid and ranked: LONG, RICH, POOR; LONG thinks 300 tokens past 1200
    wanted = [0.5 + 0.05 * 0.5, 0.5, -0.5, -1.5, 0.5 - 0.25 + 0.05]
    assert totals(group) == pytest.approx(wanted)
    assert group.advantages == pytest.approx(normalised(wanted))


def test_the_miniatures_settings_give_four_terms_of_equal_weight(miniature: RewardSettings) -> None:
    halfway = completion(LONG.memory, (miniature.length.soft + miniature.length.hard) // 2)
    group = reward_group(CONTEXT, [*GROUP[:-1], halfway], judges_of(), miniature)
    # all that keep the format are ranked, the longest first; it has half the length reward
    wanted = [3 + 2 / 3, 3 + 1 / 3, 2.0, 0.0, 1 + 0.5 + 1 + 1]
    assert totals(group) == pytest.approx(wanted)
    assert group.advantages == pytest.approx(normalised(wanted))


def test_the_miniatures_floor_keeps_small_differences_small(miniature: RewardSettings) -> None:
    group = reward_group(CONTEXT, [RICH, POOR, POOR], judges_of(), miniature)
    wanted = [4.0, 3.25, 3.25]
    assert totals(group) == pytest.approx(wanted)
    assert statistics.stdev(wanted) < 0.5
    assert group.advantages == pytest.approx(normalised(wanted, floor=0.5))


def test_the_papers_gate_spares_a_sample_that_is_worse_than_the_mean_but_not_negative(paper: RewardSettings) -> None:
    group = reward_group(CONTEXT, [RICH, POOR, LONG], judges_of(), paper)
    assert totals(group) == pytest.approx([0.525, 0.5, 0.3])
    ungated = normalised([0.525, 0.5, 0.3])
    assert ungated[2] < 0
    assert group.advantages == pytest.approx([*ungated[:2], 0.0])


@pytest.mark.parametrize("profile", ["miniature", "qwen3-vl-30b"])
def test_a_sample_whose_judge_failed_is_unscored_and_the_others_are_as_without_it(profile: str) -> None:
    settings = load_profile(profile).reward
    judges = judges_of(fails_on="lamp")
    group = reward_group(CONTEXT, GROUP, judges, settings)
    without = reward_group(CONTEXT, GROUP[:-1], judges, settings)
    assert [j.unscored for j in group.judgements] == [False, False, False, False, True]
    assert group.judgements[-1].reason == "no reply"
    assert totals(group) == [*totals(without), None]
    assert group.advantages == (*without.advantages, 0.0)
    assert any(a != 0 for a in without.advantages)


def test_a_failing_richness_judge_leaves_the_papers_valid_candidates_unscored(paper: RewardSettings) -> None:
    group = reward_group(CONTEXT, GROUP, judges_of(richness=Richnesses(fails=True)), paper)
    assert totals(group) == [None, None, -0.5, -1.5, None]
    assert group.advantages == pytest.approx([0, 0, *normalised([-0.5, -1.5]), 0])


def test_a_failing_richness_judge_leaves_all_of_the_miniatures_formatted_candidates_unscored(
    miniature: RewardSettings,
) -> None:
    group = reward_group(CONTEXT, GROUP, judges_of(richness=Richnesses(fails=True)), miniature)
    assert totals(group) == [None, None, None, 0.0, None]
    assert group.advantages == (0.0,) * 5


def test_the_richness_judge_sees_the_valid_candidates_alone(paper: RewardSettings) -> None:
    richness = Richnesses()
    reward_group(CONTEXT, GROUP, judges_of(richness=richness), paper)
    assert richness.ranked == [[RICH.memory, POOR.memory, LONG.memory]]


@pytest.mark.parametrize("members", [(BROKEN, BROKEN), (RICH, BROKEN), (WRONG, RICH)])
def test_the_richness_judge_is_not_asked_about_fewer_than_two(
    members: tuple[Completion, ...], paper: RewardSettings
) -> None:
    richness = Richnesses()
    group = reward_group(CONTEXT, members, judges_of(richness=richness), paper)
    assert richness.ranked == []
    assert all(reward.richness == 0 and reward.scored for reward in group.rewards)


def test_a_group_of_equal_rewards_has_no_advantages(miniature: RewardSettings) -> None:
    assert reward_group(CONTEXT, [BROKEN] * 4, judges_of(), miniature).advantages == (0.0,) * 4


@pytest.mark.parametrize("profile", ["miniature", "qwen3-vl-30b"])
def test_only_memories_of_good_quality_are_valid(profile: str) -> None:
    settings = load_profile(profile).reward
    over_budget = completion("over budget", settings.quality.memory_budget + 1)
    at_budget = completion("at budget", settings.quality.memory_budget)
    unjudged = completion("a lamp")
    members = [RICH, WRONG, BROKEN, over_budget, at_budget, unjudged, RICH]
    group = reward_group(CONTEXT, members, judges_of(fails_on="lamp"), settings)
    assert group.valid == [RICH.memory, at_budget.memory, RICH.memory]


def test_a_group_keeps_its_context_and_its_completions_in_order(miniature: RewardSettings) -> None:
    group = reward_group(CONTEXT, GROUP, judges_of(), miniature)
    assert group.context == CONTEXT
    assert group.completions == GROUP
    assert [j.candidate for j in group.judgements] == [0, 1, 2, 3, 4]
    assert {j.context for j in group.judgements} == {CONTEXT.id}


def test_a_summary_holds_means_over_all_rollouts_and_rewards_of_the_scored_ones(miniature: RewardSettings) -> None:
    judges = judges_of(fails_on="lamp")
    groups = [reward_group(CONTEXT, members, judges, miniature) for members in ([RICH, POOR, BROKEN], [WRONG, LONG])]
    assert [totals(g) for g in groups] == [[4.0, 3.0, 0.0], [2.0, None]]
    assert summarise([group.lesson for group in groups]) == pytest.approx(
        {
            "reward": (4 + 3 + 0 + 2) / 4,
            "format_reward": 3 / 4,
            "length_reward": 3 / 4,
            "quality_reward": 2 / 4,
            "richness_reward": 1 / 4,
            "memory_tokens": (6 + 3 + 0 + 1 + 9) / 5,
            "think_tokens": 1500 / 5,
            "format_rate": 4 / 5,
            "quality_rate": 2 / 5,
            "unscored": 1,
        }
    )


def test_a_summary_of_nothing_scored_reports_no_reward(miniature: RewardSettings) -> None:
    group = reward_group(CONTEXT, [RICH, POOR], judges_of(richness=Richnesses(fails=True)), miniature)
    assert totals(group) == [None, None]
    assert summarise([group.lesson]).get("reward") != 0.0
