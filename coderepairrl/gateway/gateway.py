"""The OpenAI-compatible server in front of vLLM, in the event loop of the rollout process.

    POST /v1/chat/completions, /v1/completions, /v1/responses    Authorization: Bearer KEY of an open session
    GET  /v1/models, GET /health

All that an agent gets is a base URL and a key. Errors have the OpenAI form; whatever ends a session is an HTTP 400
"This model's maximum context length is N tokens", at which agents stop instead of trying again.
"""

import asyncio
import errno
import gc
import logging
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from aiohttp import web
from pydantic import PositiveInt

from coderepairrl.config import Config, Port
from coderepairrl.errors import GatewayError
from coderepairrl.gateway import chat_completions, completions, responses, writing
from coderepairrl.gateway.door import Door
from coderepairrl.gateway.messages import BadRequest
from coderepairrl.gateway.rendering import Renderer, TemplateRefusal
from coderepairrl.gateway.request import Fields
from coderepairrl.gateway.session import Session, SessionClosed
from coderepairrl.gateway.session_limits import SamplingConfig, SessionLimits
from coderepairrl.gateway.vllm_client import VLLMClient
from coderepairrl.types import Outcome

DIALECTS = {"/v1/chat/completions": chat_completions, "/v1/completions": completions, "/v1/responses": responses}
log = logging.getLogger(__name__)
SHUTDOWN_S = 2.0  # for answers that are being written when the gateway stops


class GatewayConfig(Config):
    """The OpenAI-compatible server that agents talk to."""

    host: str = "127.0.0.1"  # where it listens
    port: Port = 0  # 0: any free port
    model_name: str = "policy"  # what /v1/models shows; requests may name any model
    max_body_bytes: PositiveInt = 32 * 2**20  # of a request; a longer one is refused
    # 1: the rollout process itself; more: processes of its own, when one core is not enough (docs/gateway.md)
    processes: PositiveInt = 1


class Gateway:
    """`counters`: rerendered_roots, ignored_params, forced_tool_choice, reissued, joined_retries, malformed_tool_calls,
    over all sessions. The clients, one for each vLLM server, belong to the caller: stop() does not close them.

    socket_path  listen on this Unix socket too: the same app, the same keys. The file goes with stop().
    session      external.py's where the clients are of somebody else's API; it needs no renderer
    """

    def __init__(
        self,
        config: GatewayConfig,
        clients: Sequence[VLLMClient],
        renderer: Renderer,
        socket_path: str | Path | None = None,
        session: type[Session] = Session,
    ):
        self._session_class = session
        self.config, self.clients, self.renderer = config, clients, renderer
        self.socket_path = Path(socket_path) if socket_path else None
        self.counters: Counter[str] = Counter()
        self.base_url = ""
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self._door: asyncio.Server | None = None

    async def start(self) -> str:
        """Returns the base URL for agents, http://HOST:PORT/v1. Raises GatewayError when the port is taken."""
        app = web.Application(client_max_size=self.config.max_body_bytes, middlewares=[_openai_errors])
        for path, dialect in DIALECTS.items():
            app.router.add_post(path, partial(self._answer, dialect))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._models)
        app.router.add_get("/health", _health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.config.host, self.config.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise GatewayError(
                    f"port {self.config.port} of {self.config.host} is in use: choose another, or 0 for any free one"
                ) from None
            raise GatewayError(
                f"the gateway can't listen on {self.config.host}:{self.config.port} ({error}): "
                "give an address of this machine"
            ) from error
        host, port = self._runner.addresses[0][:2]
        if self.socket_path:
            await self._listen_on_socket(self.socket_path)
        # the garbage collector need not look through imports and tokenizer for 200 ms every few seconds
        if not gc.get_freeze_count():
            gc.collect()
            gc.freeze()
        self.base_url = f"http://{host}:{port}/v1"
        return self.base_url

    async def watch(self) -> None:
        """Ends with the error of what may end by itself: here nothing."""

    async def _listen_on_socket(self, path: Path) -> None:
        """A socket in a folder of its own can be mounted into sandboxes that have no network. A file that a killed
        gateway left there is replaced."""
        try:
            path.unlink(missing_ok=True)
            self._door = await Door(self._runner.server).open(path)
            path.chmod(0o666)  # a sandbox runs as another user; who may come here has no key yet
        except OSError as error:
            await self._runner.cleanup()
            raise GatewayError(
                f"the gateway can't listen on the Unix socket {path} ({error}): "
                "give a path of less than 100 characters in a folder that you may write"
            ) from error

    async def stop(self) -> None:
        """Gives up what is in flight and closes all sessions."""
        while self._sessions:  # their runners may close some meanwhile
            await self.close_session(next(iter(self._sessions)))
        if self._door:
            self._door.close()
        if self._runner:
            await self._runner.cleanup()
        if self.socket_path:
            self.socket_path.unlink(missing_ok=True)

    def open_session(
        self, limits: SessionLimits, sampling: SamplingConfig, key: str | None = None, cache_salt: str | None = None
    ) -> Session:
        """Its `key` is the agent's API key. cache_salt: vLLM shares its KV cache only among requests of equal salt."""
        key = key or new_key()
        if key in self._sessions:
            raise GatewayError("a session with this key is open: give each its own, or none")
        session = self._sessions[key] = self._session_class(
            key, limits, sampling, self._client(), self.renderer, cache_salt, self._count
        )
        session.base_url, session.socket_path = self.base_url, self.socket_path
        return session

    def _client(self) -> VLLMClient:
        """The server with the fewest sessions, of those that are up if any is. A session stays with it: its KV cache
        has the session's history."""
        open_sessions = Counter(session.client for session in self._sessions.values())
        # of equals any: processes agree on none
        return min(
            self.clients, key=lambda client: (not client.available.is_set(), open_sessions[client], random.random())
        )

    async def close_session(self, key: str) -> Session:
        """Ends it (SUBMITTED, unless something closed it before) and returns it, complete: later requests get 401."""
        session = self._sessions.pop(key)
        session.close(Outcome.SUBMITTED, "the runner closed the session", cancel=True)
        await session.drain()
        return session

    def _count(self, name: str, number: int) -> None:
        self.counters[name] += number

    def _session_of(self, http: web.Request) -> Session:
        """Raises HTTPUnauthorized."""
        scheme, _, key = http.headers.get("Authorization", "").partition(" ")
        session = self._sessions.get(key.strip()) if scheme.lower() == "bearer" else None
        if session is None:
            raise web.HTTPUnauthorized(reason="no open session has this API key: send the key that the runner gave you")
        return session

    async def _answer(self, dialect: ModuleType, http: web.Request) -> web.StreamResponse:
        """Writes the answer, and notes whether the client was there to take it: if not, its retry gets the same."""
        session = self._session_of(http)
        try:
            session.refuse_if_closed()  # before a body is read that changes nothing
            request = dialect.read(Fields(await http.read(), http.path, http.headers, session.seen))
            turns, exchange = await session.answer(request)
        except web.HTTPRequestEntityTooLarge:
            return _error(f"the body is larger than {self.config.max_body_bytes} bytes: send less", 413)
        except (BadRequest, TemplateRefusal, web.RequestPayloadError) as error:
            return _error(str(error), 400)
        except SessionClosed as error:
            return _error(str(error), 400, "context_length_exceeded")
        if request.stream:
            response: web.StreamResponse = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            )
        else:
            response = web.json_response(dialect.answer(request, turns))
        try:
            await response.prepare(http)
            if request.stream:
                await response.write(b"".join(dialect.events(request, turns)))
            await response.write_eof()
            exchange.delivered |= http.transport is not None and not http.transport.is_closing()
        except ConnectionResetError:
            pass  # the client hung up: the completion is on record, and not delivered
        return response

    async def _models(self, http: web.Request) -> web.Response:
        self._session_of(http)
        name = http.match_info.get("name", self.config.model_name)  # requests may name any
        model = {"id": name, "object": "model", "created": 0, "owned_by": "coderepairrl"}
        return web.json_response(model if "name" in http.match_info else {"object": "list", "data": [model]})


def new_key() -> str:
    """A session's: 256 random bits."""
    return secrets.token_urlsafe(32)


@web.middleware
async def _openai_errors(http: web.Request, handler) -> web.StreamResponse:
    """No client is shown another form of error, a mistake of ours included."""
    try:
        return await handler(http)
    except web.HTTPUnauthorized as error:
        return _error(error.reason, 401, "invalid_api_key")
    except web.HTTPException as error:  # no such path, wrong method, too large a body
        response = _error(f"{http.method} {http.path}: {error.reason}", error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionError:
        raise  # the client is gone: nobody to tell
    except Exception as error:
        log.exception("the gateway failed at %s %s", http.method, http.path)
        return _error(f"the gateway failed: {type(error).__name__}: see its log", 500)


async def _health(http: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _error(message: str, status: int, code: str | None = None) -> web.Response:
    return web.json_response(writing.error(message, status, code), status=status)
