"""params.yaml as a profile: an experiment's settings, laid over a shipped profile or whole."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compiling import travelling
from taskmem.config import load_profile, parse_profile
from taskmem.errors import UserError

MINIATURE = load_profile("miniature")


def write(folder: Path, profile: Any, **more: Any) -> str:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"seed": 0, "environment": "object", "profile": profile, **more}))
    return str(path)


def test_settings_are_laid_over_the_profile_they_extend(tmp_path: Path) -> None:
    tried = load_profile(write(tmp_path, {"extends": "miniature", "phase_two": {"steps": 20}}))
    assert tried.phase_two.steps == 20
    assert tried.model_copy(update={"phase_two": MINIATURE.phase_two}) == MINIATURE


def test_they_may_extend_a_profile_of_ones_own_that_lies_beside_them(tmp_path: Path) -> None:
    deviation = {"reason": "a reason that is long enough", "settings": {"phase_two": {"beta": 0.2}}}
    mine = {"name": "mine", "extends": "miniature", "deviations": [deviation]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    tried = load_profile(write(tmp_path, {"extends": "mine.yaml", "phase_two": {"steps": 20}}))
    assert (tried.name, tried.phase_two.beta, tried.phase_two.steps) == ("mine", 0.2, 20)


def test_a_whole_profile_extends_none_and_has_no_cluster(tmp_path: Path) -> None:
    whole = parse_profile(travelling(MINIATURE))
    written = whole.model_dump(mode="json", exclude={"cluster"})
    assert load_profile(write(tmp_path, written)) == whole


@pytest.mark.parametrize("number", ["1e-05", "1E5", "-2e+3", "+1e5"])
def test_a_number_as_dvc_writes_it_is_a_number(tmp_path: Path, number: str) -> None:
    path = Path(write(tmp_path, {"extends": "miniature", "reward": {"format": {"valid": 12345}}}))
    path.write_text(path.read_text().replace("12345", number))
    assert load_profile(str(path)).reward.format.valid == float(number)


@pytest.mark.parametrize("name", ["1e5x", "e5", "1e", "object-1e5"])
def test_a_name_that_looks_almost_like_a_number_stays_a_name(tmp_path: Path, name: str) -> None:
    path = Path(write(tmp_path, {"extends": "miniature", "name": "NAME"}))
    path.write_text(path.read_text().replace("NAME", name))
    assert load_profile(str(path)).name == name


@pytest.mark.parametrize(
    ("profile", "more", "says"),
    [
        ({"extends": "miniature", "phase_two": {"step": 20}}, {}, "phase_two.step: Extra inputs"),
        (
            {"extends": "miniature", "phase_two": {"steps": "many"}},
            {},
            "phase_two.steps: Input should be a valid integer",
        ),
        ({"extends": "nowhere"}, {}, "nowhere: not found"),
        ({"extends": "params.yaml"}, {}, "extends itself"),
        ({"phase_two": {"steps": 20}}, {}, "name: Field required"),
        ("miniature", {}, "profile: Input should be a valid dictionary"),
        ({"extends": "miniature"}, {"deviations": []}, "deviations: Extra inputs"),
        ({"extends": "miniature"}, {"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"extends": "miniature"}, {"environment": None}, "environment: Input should be a valid string"),
    ],
)
def test_a_mistake_names_file_and_field(tmp_path: Path, profile: Any, more: dict[str, Any], says: str) -> None:
    path = write(tmp_path, profile, **more)
    with pytest.raises(UserError) as caught:
        load_profile(path)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
