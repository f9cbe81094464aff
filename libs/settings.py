"""Settings of all services, from the environment and a `.env` file. Only `main` modules call `load_settings`."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

PREFIX = "FLOWLEDGER_"

FILE_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("image_url", "image_data"),
    "audio": ("input_audio", "audio_url", "input_audio_url"),
    "video": ("video_url", "video_data"),
    "document": ("file", "file_url", "document_url"),
}
"""Types of files in prompts, and the parts of a message that servers take them in; the usual one first."""

MAX_PARTITIONS = 4096
"""As many as a run id can name (`libs.events.ids`, which the command line would have to load for this alone)."""


class SettingsError(Exception):
    """A setting cannot be used. The text names it, what was expected, and what was seen."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One model provider, in OpenAI-compatible form."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    auth: Literal["bearer", "api-key"] | None = None
    """How the key is sent; None: as is known of the provider."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Name in documents -> the server's own name of a model, or of a deployment."""
    files: Mapping[str, str] | None = None
    """Type of a file -> the part of a message that it goes into; None: as is known of the provider."""
    context_tokens: Mapping[str, int] = field(default_factory=dict)
    """Name of a model in documents, or `*` for all others -> how many tokens its context holds."""
    timeout_s: float = 600.0
    """How long it may say nothing, before its first word or between two."""


@dataclass(frozen=True, slots=True)
class S3:
    """A bucket for large values and files."""

    bucket: str
    """Its name, or `name/prefix`."""
    endpoint: str
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


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
    cors_origins: tuple[str, ...] = ("*",)
    """Origins whose pages may call the API from a browser; `*`: all."""
    http_allow: tuple[str, ...] = ()
    """Hosts or networks that HTTP nodes may reach although they are private."""
    s3: S3 | None = None
    key_requests_per_minute: int = 0
    max_app_runs: int = 0
    max_runs: int = 0
    """0: no limit; runs are those under way at once."""
    upload_blocked: tuple[str, ...] = ()
    """Extensions of files that are not taken."""


def load_settings(environ: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Settings from `environ` (default: the process environment) over `env_file`. Raises SettingsError, all at once."""
    problems: list[str] = []
    values = {**_read_env_file(env_file, problems), **(os.environ if environ is None else environ)}

    def text(name: str) -> str | None:
        return values.get(PREFIX + name) or None

    def number(name: str, default: float, minimum: float) -> float:
        return _number(name, text(name), default, minimum, problems)

    def count(name: str, default: int, minimum: int, most: int | None = None) -> int:
        value = number(name, default, minimum)
        if value != int(value) or (most is not None and value > most):
            span = f"{minimum} to {most}" if most is not None else f"{minimum} or more"
            problems.append(f"{PREFIX}{name}: expected a whole number, {span}, got {text(name)!r}")
        return int(value)

    def choice(name: str, allowed: tuple[str, ...]) -> str:
        raw = text(name) or allowed[0]
        if raw not in allowed:
            problems.append(f"{PREFIX}{name}: expected one of {', '.join(allowed)}, got {raw!r}")
        return raw

    def words(name: str) -> tuple[str, ...]:
        return tuple(word for word in (text(name) or "").replace(",", " ").split() if word)

    settings = Settings(
        kafka=text("KAFKA"),
        kafka_options=_pairs("KAFKA_OPTIONS", text("KAFKA_OPTIONS") or "", problems),
        topic_prefix=text("TOPIC_PREFIX") or "flowledger",
        partitions=count("PARTITIONS", 16, 1, MAX_PARTITIONS),
        replication=count("REPLICATION", 1, 1),
        database_url=text("DATABASE_URL"),
        data=Path(text("DATA") or ".flowledger"),
        url=text("URL"),
        admin_token=text("ADMIN_TOKEN"),
        models=choice("MODELS", ("configured", "offline")),  # type: ignore[arg-type]  # checked by choice
        providers=_providers(values, problems),
        max_steps=count("MAX_STEPS", 100_000, 1),
        max_time_s=number("MAX_TIME_S", 0, 0),
        sandbox=choice("SANDBOX", ("strict", "process")),  # type: ignore[arg-type]  # checked by choice
        sandbox_packages=words("SANDBOX_PACKAGES"),
        secret_key=text("SECRET_KEY"),
        cors_origins=words("CORS_ORIGINS") or ("*",),
        http_allow=_allowed(words("HTTP_ALLOW"), problems),
        s3=_s3(values, problems),
        key_requests_per_minute=count("KEY_REQUESTS_PER_MINUTE", 0, 0),
        max_app_runs=count("MAX_APP_RUNS", 0, 0),
        max_runs=count("MAX_RUNS", 0, 0),
        upload_blocked=tuple(word.lower().lstrip(".") for word in words("UPLOAD_BLOCKED")),
    )
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def _allowed(entries: tuple[str, ...], problems: list[str]) -> tuple[str, ...]:
    if entries:
        from libs.net import Allowed  # HTTP is heavy, and few set this

        for entry in entries:
            try:
                Allowed.parse([entry])
            except ValueError as error:
                problems.append(str(error))
    return entries


def _number(name: str, raw: str | None, default: float, minimum: float, problems: list[str]) -> float:
    if raw is None:
        return default
    try:
        value = float(raw)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and value >= minimum:
        return value
    problems.append(f"{PREFIX}{name}: expected a number of at least {minimum:g}, got {raw!r}")
    return default


def _pairs(name: str, raw: str, problems: list[str]) -> dict[str, str]:
    """`key=value;key=value`."""
    pairs: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in raw.split(";"))):
        key, equals, value = part.partition("=")
        if not equals:
            problems.append(f"{PREFIX}{name}: expected key=value;key=value, got a part without '=': {key!r}")
        pairs[key.strip()] = value.strip()
    return pairs


_PROVIDER_SETTINGS = ("BASE_URL", "API_KEY", "API_KEY_FILE", "AUTH", "MODELS", "FILES", "CONTEXT_TOKENS", "TIMEOUT_S")


def _s3(values: Mapping[str, str], problems: list[str]) -> S3 | None:
    start = PREFIX + "S3_"
    bucket, access_key, secret_key = (values.get(start + name) for name in ("BUCKET", "ACCESS_KEY", "SECRET_KEY"))
    if not bucket:
        return None
    if not access_key or not secret_key:
        problems.append(f"{start}ACCESS_KEY, {start}SECRET_KEY: expected both beside {start}BUCKET")
    region = values.get(start + "REGION") or "us-east-1"
    endpoint = values.get(start + "ENDPOINT") or f"https://s3.{region}.amazonaws.com"
    if not endpoint.startswith(("http://", "https://")):
        problems.append(f"{start}ENDPOINT: expected a URL with http:// or https://, got {endpoint!r}")
    return S3(bucket, endpoint, region, access_key or "", secret_key or "")


def _providers(values: Mapping[str, str], problems: list[str]) -> dict[str, Provider]:
    start = PREFIX + "PROVIDER_"
    names = {
        key[len(start) : -len(setting) - 1]
        for key in values
        for setting in _PROVIDER_SETTINGS
        if key.startswith(start) and key.endswith(f"_{setting}") and len(key) > len(start) + len(setting) + 1
    }
    return {name: _provider(f"PROVIDER_{name}", values, problems) for name in names}


def _provider(name: str, values: Mapping[str, str], problems: list[str]) -> Provider:
    def text(setting: str) -> str | None:
        return values.get(f"{PREFIX}{name}_{setting}") or None

    auth, file = text("AUTH"), text("API_KEY_FILE")
    if auth not in (None, "bearer", "api-key"):
        problems.append(f"{PREFIX}{name}_AUTH: expected bearer or api-key, got {auth!r}")
    key = text("API_KEY")
    if key is None and file is not None:
        try:
            key = Path(file).read_text("utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{PREFIX}{name}_API_KEY_FILE: {file} cannot be read ({type(error).__name__})")
    base_url = text("BASE_URL")
    if base_url is not None and not re.match(r"https?://[^/]", base_url):
        problems.append(f"{PREFIX}{name}_BASE_URL: expected a URL with http:// or https://, got {base_url!r}")
    return Provider(
        base_url=base_url,
        api_key=key,
        auth=auth,  # type: ignore[arg-type]  # checked above
        models=_pairs(f"{name}_MODELS", text("MODELS") or "", problems),
        files=_file_parts(f"{name}_FILES", text("FILES"), problems),
        context_tokens=_counts(f"{name}_CONTEXT_TOKENS", text("CONTEXT_TOKENS") or "", problems),
        timeout_s=_number(f"{name}_TIMEOUT_S", text("TIMEOUT_S"), 600, 0.1, problems),
    )


def _counts(name: str, raw: str, problems: list[str]) -> dict[str, int]:
    """`name=count;name=count`."""
    counts: dict[str, int] = {}
    for key, value in _pairs(name, raw, problems).items():
        if value.isascii() and value.isdecimal() and int(value) > 0:
            counts[key] = int(value)
        else:
            problems.append(f"{PREFIX}{name}: expected a whole number of at least 1 for {key}, got {value!r}")
    return counts


def _file_parts(name: str, raw: str | None, problems: list[str]) -> dict[str, str] | None:
    """`image;audio=audio_url`, or `none`."""
    if raw is None or raw.strip() == "none":
        return None if raw is None else {}
    parts: dict[str, str] = {}
    for piece in filter(None, (each.strip() for each in raw.split(";"))):
        kind, _, part = (each.strip() for each in piece.partition("="))
        allowed = FILE_PARTS.get(kind, ())
        if not allowed or (part and part not in allowed):
            known = (
                f"{kind}= one of {', '.join(allowed)}" if allowed else f"types among {', '.join(FILE_PARTS)}, or none"
            )
            problems.append(f"{PREFIX}{name}: expected {known}, got {piece!r}")
        else:
            parts[kind] = part or allowed[0]
    return parts


def _read_env_file(path: Path | None, problems: list[str]) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    values: dict[str, str] = {}
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({error}). Mend it, or move it out of the way") from error
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = re.sub(r"^export\s+", "", line.strip()).partition("=")
        if not name.startswith(PREFIX):
            continue
        name = name.rstrip()
        if not equals or not re.fullmatch(r"\w+", name):
            begins = re.split(r"\W", name)[0]  # no more of it: the rest may be the secret
            problems.append(f"{path}, line {number}: {begins}: expected NAME=VALUE")
        values[name] = value.strip().strip("'\"")
    return values
