"""Settings of all services, from the environment and a `.env` file. Only `main` modules call `load_settings`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PREFIX = "FLOWLEDGER_"


class SettingsError(Exception):
    """A setting cannot be used. The text names it, what was expected, and what was seen."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One model provider, in OpenAI-compatible form."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    kafka: str | None = None
    kafka_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    topic_prefix: str = "flowledger"
    partitions: int = 16
    replication: int = 1
    database_url: str | None = field(default=None, repr=False)
    data: Path = Path(".flowledger")
    url: str | None = None
    admin_token: str | None = field(default=None, repr=False)
    models: Literal["configured", "offline"] = "configured"
    providers: Mapping[str, Provider] = field(default_factory=dict, repr=False)
    """By name: last part of the document's provider id, upper case, other characters `_`; `DEFAULT` serves the rest."""
    max_steps: int = 100_000
    max_time_s: float = 0
    sandbox: Literal["strict", "process"] = "strict"
    sandbox_packages: tuple[str, ...] = ()
    secret_key: str | None = field(default=None, repr=False)
    http_allow: tuple[str, ...] = ()
    """Hosts or networks that HTTP nodes may reach although they are private."""
    upload_blocked: tuple[str, ...] = ()
    """Extensions of files that are not taken."""


def load_settings(environ: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Settings from `environ` (default: the process environment) over `env_file`. Raises SettingsError, all at once."""
    values = {**_read_env_file(env_file), **(os.environ if environ is None else environ)}
    problems: list[str] = []

    def text(name: str) -> str | None:
        return values.get(PREFIX + name) or None

    def number(name: str, default: float, minimum: float) -> float:
        raw = text(name)
        if raw is None:
            return default
        try:
            value = float(raw)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            problems.append(f"{PREFIX}{name}: expected a number of at least {minimum:g}, got {raw!r}")
        return value

    def choice(name: str, allowed: tuple[str, ...]) -> str:
        raw = text(name) or allowed[0]
        if raw not in allowed:
            problems.append(f"{PREFIX}{name}: expected one of {', '.join(allowed)}, got {raw!r}")
        return raw

    def words(name: str) -> tuple[str, ...]:
        return tuple(word for word in (text(name) or "").replace(",", " ").split() if word)

    settings = Settings(
        kafka=text("KAFKA"),
        kafka_options=_options(text("KAFKA_OPTIONS") or "", problems),
        topic_prefix=text("TOPIC_PREFIX") or "flowledger",
        partitions=int(number("PARTITIONS", 16, 1)),
        replication=int(number("REPLICATION", 1, 1)),
        database_url=text("DATABASE_URL"),
        data=Path(text("DATA") or ".flowledger"),
        url=text("URL"),
        admin_token=text("ADMIN_TOKEN"),
        models=choice("MODELS", ("configured", "offline")),  # type: ignore[arg-type]  # checked by choice
        providers=_providers(values),
        max_steps=int(number("MAX_STEPS", 100_000, 1)),
        max_time_s=number("MAX_TIME_S", 0, 0),
        sandbox=choice("SANDBOX", ("strict", "process")),  # type: ignore[arg-type]  # checked by choice
        sandbox_packages=words("SANDBOX_PACKAGES"),
        secret_key=text("SECRET_KEY"),
        http_allow=words("HTTP_ALLOW"),
        upload_blocked=tuple(word.lower().lstrip(".") for word in words("UPLOAD_BLOCKED")),
    )
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _options(raw: str, problems: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in raw.split(";"))):
        name, equals, value = part.partition("=")
        if not equals:
            problems.append(f"{PREFIX}KAFKA_OPTIONS: expected key=value;key=value, got a part without '=': {name!r}")
        options[name.strip()] = value.strip()
    return options


def _providers(values: Mapping[str, str]) -> dict[str, Provider]:
    start = PREFIX + "PROVIDER_"
    names = {
        key[len(start) :].removesuffix(ending)
        for key in values
        for ending in ("_BASE_URL", "_API_KEY")
        if key.startswith(start) and key.endswith(ending)
    }
    return {
        name: Provider(values.get(f"{start}{name}_BASE_URL") or None, values.get(f"{start}{name}_API_KEY") or None)
        for name in names
    }


def _read_env_file(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    values: dict[str, str] = {}
    for line in path.read_text("utf-8").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#") and name.startswith(PREFIX):
            values[name.strip()] = value.strip().strip("'\"")
    return values
