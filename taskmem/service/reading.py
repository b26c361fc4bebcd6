"""A service's settings from a YAML file."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from taskmem.errors import UserError
from taskmem.records import one_line
from taskmem.settings import Settings

S = TypeVar("S", bound=Settings)


def read_settings(path: Path | None, kind: type[S]) -> S:
    """The settings in a YAML file, the defaults where it is silent; UserError naming the file and the field if it is wrong."""
    if path is None:
        return kind()
    try:
        said = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader) or {}
        return kind.model_validate(said)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({one_line(str(error))}); mend it") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {one_line(field)}: {first['msg']}; mend it") from None
