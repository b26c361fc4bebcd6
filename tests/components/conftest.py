"""Both profiles, and images by digest."""

import pytest

from components.images import Images
from taskmem.config import Profile, load_profile, profile_names


@pytest.fixture(params=profile_names())
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


@pytest.fixture
def images() -> Images:
    return Images(
        data="registry.test/taskmem/data:1@sha256:" + "d" * 64, train="registry.test/taskmem/train@sha256:" + "7" * 64
    )
