"""The OpenAI-compatible server in front of vLLM: sessions, and the token-exact tree of their calls.

client = VLLMClient("http://127.0.0.1:8000", wait_s=600)
gateway = Gateway(GatewayConfig(), [client], make_renderer(tokenizer))
base_url = await gateway.start()
session = gateway.open_session(SessionLimits(max_turns=20), SamplingConfig(temperature=1.0))
...  # an agent talks to base_url with session.key as its API key
session = await gateway.close_session(session.key)  # session.calls, .close_reason, .events
"""

from coderepairrl.gateway.families import make_renderer
from coderepairrl.gateway.gateway import Gateway, GatewayConfig
from coderepairrl.gateway.rendering import Renderer, RenderingConfig
from coderepairrl.gateway.session import Session
from coderepairrl.gateway.session_limits import SamplingConfig, SessionLimits, TrainedSamplingConfig
from coderepairrl.gateway.shown import renderer_of
from coderepairrl.gateway.vllm_client import VLLMClient
from coderepairrl.gateway.workers import RemoteSession, Workers, make_gateway

__all__ = [
    "Gateway",
    "GatewayConfig",
    "RemoteSession",
    "Renderer",
    "RenderingConfig",
    "SamplingConfig",
    "Session",
    "SessionLimits",
    "TrainedSamplingConfig",
    "VLLMClient",
    "Workers",
    "make_gateway",
    "make_renderer",
    "renderer_of",
]
