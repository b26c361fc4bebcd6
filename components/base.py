"""How a component is made: a typed function whose body only imports from `taskmem` and calls.

kfp embeds the function's source in the pipeline and runs it in the stage's image, which has kfp and taskmem installed; nothing
is installed when the pipeline runs.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from kfp import dsl
from kfp.dsl.python_component import PythonComponent

from components.images import UNPLACED

component: Callable[[Callable[..., object]], PythonComponent] = functools.partial(
    dsl.component, base_image=UNPLACED, install_kfp_package=False
)
"""The decorator of every component. The image comes later, from the profile: see `placement.place`."""


def named(part: PythonComponent, name: str) -> PythonComponent:
    """The same component under another name, in lower case with hyphens.

    Needed for a component of a nested pipeline that also stands in the pipeline around it, or in another one nested there.
    When kfp 2.17 folds a nested pipeline in, it renames what has the same name while it merges, and a task can end up with
    the labels, secrets, tolerations, timeout or even image of another, from one compilation to the next differently.
    """
    return PythonComponent(replace(part.component_spec, name=name), part.python_func)
