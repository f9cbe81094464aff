"""What is known of model providers that documents name: where they are, and how they take a key.

By the last part of a document's provider id, as in the names of settings. Operators set keys, and addresses where every
account has its own; nothing here is called unless they did. All of them are asked in OpenAI's form, which most speak
beside their own; the few that do not need a gateway, and `hint` says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from libs.settings import FILE_PARTS

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
