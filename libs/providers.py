"""What is known of model providers that documents name: where they are, and how they take a key.

By the last part of a document's provider id, as in the names of settings. Operators set keys, and addresses where every
account has its own; nothing here is called unless they did. All of them are asked in OpenAI's form, which most speak
beside their own; the few that do not need a gateway, and `hint` says so.

Does not call anybody: models are asked by the executor, embeddings by the API.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from libs.settings import FILE_PARTS, Provider

DEFAULT: Final = "DEFAULT"

Auth = Literal["bearer", "api-key"]
"""`bearer`: `Authorization: Bearer KEY`; `api-key`: the header `api-key`, as Azure takes it."""


USUAL_PARTS: Final[Mapping[str, str]] = {kind: parts[0] for kind, parts in FILE_PARTS.items()}
_TEXT_ONLY: Final[Mapping[str, str]] = {}
_NO_ADDRESSES: Final[Mapping[str, str]] = {**USUAL_PARTS, "image": "image_data", "video": "video_data"}


@dataclass(frozen=True, slots=True)
class Known:
    base_url: str | None = None
    """Where a key alone is enough; None: every account, or machine, has its own address."""
    auth: Auth = "bearer"
    path: str = ""
    """What an address without a path gets, as operators copy it from where it needs none."""
    hint: str = ""
    """The form of an address of one's own."""
    files: Mapping[str, str] = field(default_factory=lambda: USUAL_PARTS)
    """Types of files that its models take in prompts, and in which part of a message; others are left out."""


_OWN_MACHINE: Final = Known(path="/v1", hint="http://HOST:PORT/v1; a key only if the server asks for one")
_AZURE: Final = Known(
    auth="api-key",
    hint="https://RESOURCE.openai.azure.com/openai/v1, or for one deployment "
    "https://RESOURCE.openai.azure.com/openai/deployments/NAME?api-version=VERSION",
)
_BEDROCK: Final = Known(
    hint="https://bedrock-runtime.REGION.amazonaws.com/openai/v1 with a Bedrock API key, or a gateway for models that "
    "it does not offer there"
)
_GEMINI: Final = Known("https://generativelanguage.googleapis.com/v1beta/openai", files=_NO_ADDRESSES)
_VERTEX: Final = Known(
    hint="https://REGION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/REGION/endpoints/openapi through "
    "something that renews its tokens, or a gateway"
)

KNOWN: Final[Mapping[str, Known]] = {
    "AIHUBMIX": Known("https://aihubmix.com/v1"),
    "ANTHROPIC": Known("https://api.anthropic.com/v1"),
    "AZURE": _AZURE,
    "AZURE_OPENAI": _AZURE,
    "BAICHUAN": Known("https://api.baichuan-ai.com/v1", files=_TEXT_ONLY),
    "BEDROCK": _BEDROCK,
    "CEREBRAS": Known("https://api.cerebras.ai/v1"),
    "COHERE": Known("https://api.cohere.ai/compatibility/v1"),
    "DEEPSEEK": Known("https://api.deepseek.com/v1", files=_TEXT_ONLY),
    "FIREWORKS": Known("https://api.fireworks.ai/inference/v1"),
    "GEMINI": _GEMINI,
    "GITEE_AI": Known("https://ai.gitee.com/v1"),
    "GOOGLE": _GEMINI,
    "GPUSTACK": _OWN_MACHINE,
    "GROQ": Known("https://api.groq.com/openai/v1"),
    "HUGGINGFACE_HUB": Known("https://router.huggingface.co/v1"),
    "HUNYUAN": Known("https://api.hunyuan.cloud.tencent.com/v1"),
    "LM_STUDIO": replace(_OWN_MACHINE, files=_NO_ADDRESSES),
    "LOCALAI": _OWN_MACHINE,
    "MINIMAX": Known("https://api.minimax.chat/v1"),
    "MISTRALAI": Known("https://api.mistral.ai/v1", files={**USUAL_PARTS, "document": "document_url"}),
    "MODELSCOPE": Known("https://api-inference.modelscope.cn/v1"),
    "MOONSHOT": Known("https://api.moonshot.cn/v1", files=_NO_ADDRESSES),
    "NOVITA": Known("https://api.novita.ai/v3/openai"),
    "NVIDIA": Known("https://integrate.api.nvidia.com/v1"),
    "NVIDIA_NIM": _OWN_MACHINE,
    "OLLAMA": Known(
        "http://127.0.0.1:11434/v1", path="/v1", hint="http://HOST:11434/v1, and no key", files=_NO_ADDRESSES
    ),
    "OPENAI": Known("https://api.openai.com/v1"),
    "OPENAI_API_COMPATIBLE": Known(hint="that of the server, up to where /chat/completions would follow"),
    "OPENLLM": _OWN_MACHINE,
    "OPENROUTER": Known("https://openrouter.ai/api/v1"),
    "PERPLEXITY": Known("https://api.perplexity.ai"),
    "SAMBANOVA": Known("https://api.sambanova.ai/v1"),
    "SILICONFLOW": Known("https://api.siliconflow.cn/v1", files={**USUAL_PARTS, "audio": "audio_url"}),
    "SPARK": Known("https://spark-api-open.xf-yun.com/v1"),
    "STEPFUN": Known("https://api.stepfun.com/v1"),
    "TOGETHERAI": Known("https://api.together.xyz/v1"),
    "TONGYI": Known(
        "https://dashscope.aliyuncs.com/compatible-mode/v1", files={**USUAL_PARTS, "audio": "input_audio_url"}
    ),
    "UPSTAGE": Known("https://api.upstage.ai/v1"),
    "VERTEX_AI": _VERTEX,
    "VLLM": _OWN_MACHINE,
    "VOLCENGINE": Known("https://ark.cn-beijing.volces.com/api/v3"),
    "VOLCENGINE_MAAS": Known("https://ark.cn-beijing.volces.com/api/v3"),
    "WENXIN": Known("https://qianfan.baidubce.com/v2"),
    "X": Known("https://api.x.ai/v1"),
    "XAI": Known("https://api.x.ai/v1"),
    "XINFERENCE": _OWN_MACHINE,
    "ZHIPUAI": Known("https://open.bigmodel.cn/api/paas/v4", files={**USUAL_PARTS, "document": "file_url"}),
}


class ProviderUnset(Exception):
    """The settings do not say where the provider is. The text says what to set."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where and how a provider is asked."""

    label: str
    """How error texts call it."""
    base_url: str
    setting: Provider
    known: Known

    @property
    def auth(self) -> Auth:
        return self.setting.auth or self.known.auth


def setting_name(provider_id: str) -> str:
    """`langgenius/openai/openai` -> `OPENAI`: the NAME inside `FLOWLEDGER_PROVIDER_<NAME>_API_KEY`."""
    last = provider_id.strip().rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Z0-9]", "_", last.upper())


def chosen(settings: Mapping[str, Provider], name: str) -> tuple[Provider | None, Known]:
    """The settings that serve the provider of this name, and what is known of it."""
    own = settings.get(name)
    # What is known of a provider is known of its own settings: the default may stand for anything.
    return (own, KNOWN.get(name, Known())) if own is not None else (settings.get(DEFAULT), Known())


def reach(settings: Mapping[str, Provider], provider_id: str) -> Reach:
    """How the provider of a document's id is asked. Raises ProviderUnset."""
    name = setting_name(provider_id)
    own = settings.get(name)
    setting, known = chosen(settings, name)
    # A key for every provider must not be sent to an address that a document's provider id picks.
    base_url = setting.base_url if setting else None
    if base_url is None and own is not None and own.api_key:
        base_url = known.base_url
    if setting is None or base_url is None:
        raise ProviderUnset(_missing(name, provider_id, own))
    label = name.lower() if own is not None else f"{name.lower()} (by the default provider)"
    return Reach(label, base_url, setting, known)


def endpoint(base_url: str, path: str, call: str) -> str:
    """The address of `call` (`/chat/completions`) at a base URL as operators write it; `path`: as in `Known`."""
    address, mark, query = base_url.strip().partition("?")
    address = re.sub(r"/((chat/)?completions|embeddings)/*\Z", "", address).rstrip("/")
    if re.fullmatch(r"[a-z]+://[^/]*", address):
        address += path
    return address + call + mark + query


def key_header(key: str, auth: Auth) -> tuple[str, str]:
    return ("Authorization", f"Bearer {key}") if auth == "bearer" else ("api-key", key)


def _missing(name: str, provider_id: str, own: Provider | None) -> str:
    prefix = f"FLOWLEDGER_PROVIDER_{name}"
    known = KNOWN.get(name, Known())
    if own is not None:
        first = f"set {prefix}_BASE_URL" + (f" or {prefix}_API_KEY" if known.base_url and not own.api_key else "")
    elif known.base_url:
        first = f"set {prefix}_API_KEY (and {prefix}_BASE_URL for a server of your own)"
    else:
        first = f"set {prefix}_BASE_URL and {prefix}_API_KEY"
    if known.hint:
        first += f" (its address: {known.hint})"
    return (
        f"No settings for the model provider {provider_id or '(none named)'}: {first}, or "
        "FLOWLEDGER_PROVIDER_DEFAULT_BASE_URL for all providers, or FLOWLEDGER_MODELS=offline for answers of a "
        "stand-in"
    )
