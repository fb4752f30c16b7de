"""`Config`: base of frozen keyword-only dataclasses that validate their fields and round-trip through JSON."""

import dataclasses
import types
import typing
from typing import Any, Self

from dalle.errors import ConfigError

__all__ = ["Config", "require", "require_at_least", "require_multiple"]


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every configuration. Subclasses are frozen keyword-only dataclasses that validate their fields in
    `__post_init__`; fields may be numbers, strings, booleans, None, tuples of these, or other `Config`s."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values: tuples become lists, nested configurations become objects."""
        return {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The values of the fields that have defaults, as `to_dict` gives them; those of nested configurations, too."""
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                values[field.name] = _to_json(field.default)
            elif isinstance(hint := hints[field.name], type) and issubclass(hint, Config):
                values[field.name] = hint.defaults()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ConfigError` for an unknown or missing key, or a value of the wrong
        type."""
        require(isinstance(values, dict), f"{cls.__name__} must be an object, not {type(values).__name__}")
        known = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            require(key in known, f"{cls.__name__} has no key {key!r}; its keys are {', '.join(known)}")
        hints = typing.get_type_hints(cls)
        converted = {key: _from_json(f"{cls.__name__}.{key}", hints[key], value) for key, value in values.items()}
        for name, field in known.items():
            has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            require(name in converted or has_default, f"{cls.__name__} needs the key {name!r}")
        return cls(**converted)


def require_at_least(config: Config, minimum: int, *names: str) -> None:
    """Raise `ConfigError` unless each of the named fields is at least `minimum`."""
    for name in names:
        value = getattr(config, name)
        require(value >= minimum, f"{name} is {value}; it must be at least {minimum}")


def require_multiple(config: Config, divisor: int, *names: str) -> None:
    """Raise `ConfigError` unless each of the named fields is a positive multiple of `divisor`."""
    for name in names:
        value = getattr(config, name)
        require(value > 0 and value % divisor == 0, f"{name} is {value}; it must be a multiple of {divisor}")


def _to_json(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(name: str, hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _from_json(name, hint, value)
    if origin is typing.Literal:
        choices = ", ".join(map(repr, arguments))
        require(value in arguments, f"{name} is {value!r}; it must be one of {choices}")
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name} must be a list, not {value!r}")
        return tuple(_from_json(f"{name}[{i}]", arguments[0], item) for i, item in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_kind = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    require(not wrong_kind, f"{name} must be {hint.__name__}, not {value!r}")
    return value
