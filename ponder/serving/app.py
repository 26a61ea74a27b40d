"""The server's routes: OpenAI's API with DeepSeek's conventions, /health and /metrics.

    app = create_app(ServedModels({"mini": ModelSource("mini")}), ServeSettings())

Routes are thin: they read a request, have it computed, and write the replies down.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ponder.errors import PonderError, UsageError
from ponder.serving.batching import Batcher, Delta
from ponder.serving.errors import ApiError, error_body
from ponder.serving.generation import Generation, Prompt, Wish
from ponder.serving.limits import BodyLimit, Doorkeeper, Gate
from ponder.serving.metrics import Counting, Metrics
from ponder.serving.models import ServedModel, ServedModels
from ponder.serving.responses import ChatFormatter, CompletionFormatter
from ponder.serving.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
    Sampled,
)
from ponder.serving.settings import ServeSettings

_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    **_ERRORS,
}

_KEEP_ALIVE_S = 15.0
"""A comment is sent into a stream that is silent for so long: proxies then keep it open."""

_GRACE_S = 5.0
"""After a request's deadline a stream has so long to tell its client."""

_DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's own default of the completions API."""


def create_app(models: ServedModels, settings: ServeSettings) -> FastAPI:
    """The server as an ASGI application. Further routes may be added to it; the key guards them too."""
    server = _Server(models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.batcher = Batcher(settings.concurrency, settings.cache_bytes)
        # a thread for each request that is let in: one whose model is being loaded must not hold up the others
        server.pool = ThreadPoolExecutor(settings.concurrency + settings.queue, thread_name_prefix="request")
        yield
        server.gate.stopping = True
        server.pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(server.batcher.close)

    app = FastAPI(title="Ponder", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.gate = server.gate
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Doorkeeper, settings=settings)
    app.add_middleware(Counting, metrics=server.metrics)
    _add_error_handlers(app)
    _add_routes(app, server)
    return app


def _add_routes(app: FastAPI, server: _Server) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_ANSWERS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Reply to a conversation."""
        return await server.chat(body, request)

    @app.post("/v1/completions", response_model=Completion, responses=_ANSWERS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        return await server.complete(body, request)

    @app.get("/v1/models", responses=_ERRORS)
    def list_models() -> ModelList:
        """The models that may be asked for."""
        return ModelList(data=server.cards())

    @app.get("/v1/models/{model_id:path}", responses=_ERRORS)
    def show_model(model_id: str) -> ModelCard:
        """One model."""
        for card in server.cards():
            if card.id == model_id:
                return card
        raise ApiError(404, f"the model {model_id!r} is not served here", "model_not_found", "model")

    @app.get("/health", response_model=Health, responses=_ERRORS)
    def health() -> Response:
        """Whether requests are taken: 200, or 503 while stopping or when the worker has failed."""
        status = server.health()
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_ERRORS})
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


class _Server:
    """What the routes share."""

    batcher: Batcher
    pool: ThreadPoolExecutor

    def __init__(self, models: ServedModels, settings: ServeSettings) -> None:
        self.models = models
        self.settings = settings
        self.gate = Gate(settings)
        self.metrics = Metrics()
        self.metrics.watch("ponder_replies_running", "Replies being computed", lambda: self.batcher.num_running)
        self.metrics.watch("ponder_replies_waiting", "Replies that wait for a place", lambda: self.batcher.num_waiting)
        self.metrics.watch("ponder_model_bytes", "Weights in memory", lambda: models.loaded_bytes)

    def cards(self) -> list[ModelCard]:
        sources = self.models.sources().items()
        return [ModelCard(id=name, created=self.models.created(source)) for name, source in sources]

    def health(self) -> str:
        if self.gate.stopping:
            return "stopping"
        return "ok" if self.batcher.is_alive else "failed"

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        _refuse(body.refusals())

        def prompts(model: ServedModel) -> list[Prompt]:
            # the developer's role is the system's newer name
            past = [{"role": m.role.replace("developer", "system"), "content": m.text} for m in body.messages]
            tokenizer = model.loaded.tokenizer
            text = model.chat.render(past, body.wants_thinking, tokenizer)
            return [Prompt(tuple(tokenizer.encode_prompt(text)), text)]

        wish = Wish(
            **_common_wishes(body),
            max_tokens=self._token_limit(body.token_limit, self.settings.max_tokens),
            num_top=body.num_top,
            splits_thinking=True,
            thinking_budget=None if body.thinking is None else body.thinking.budget_tokens,
        )
        generation = await self._start(body.model, prompts, wish)
        formatter = ChatFormatter(body.model, generation.prompt_tokens, generation.tokenizer, bool(body.logprobs))
        return await self._answer(generation, formatter, body, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        _refuse(body.refusals())

        def prompts(model: ServedModel) -> list[Prompt]:
            tokenizer = model.loaded.tokenizer
            given = [_from_ids(p, model) if isinstance(p, list) else p for p in body.prompts]
            return [p if isinstance(p, Prompt) else Prompt(tuple(tokenizer.encode_prompt(p)), p) for p in given]

        wish = Wish(
            **_common_wishes(body),
            max_tokens=self._token_limit(body.max_tokens, _DEFAULT_COMPLETION_TOKENS),
            num_top=body.logprobs,
        )
        generation = await self._start(body.model, prompts, wish, len(body.prompts))
        wanted = body.logprobs is not None
        formatter = CompletionFormatter(body.model, generation.prompt_tokens, generation.tokenizer, wanted)
        return await self._answer(generation, formatter, body, request)

    async def _start(
        self, model_id: str, prompts: Callable[[ServedModel], list[Prompt]], wish: Wish, num_prompts: int = 1
    ) -> Generation:
        """Have replies computed. Raises `ApiError` or `PonderError`, holding nothing, when the request is refused."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.timeout_s
        with ExitStack() as held:
            self.gate.enter(wish.n * num_prompts)
            held.callback(self.gate.leave, wish.n * num_prompts)
            # loading, rendering and tokenising take too long for the event loop
            model = await loop.run_in_executor(self.pool, self.models.acquire, model_id)
            held.callback(self.models.release, model)
            rendered = await loop.run_in_executor(self.pool, prompts, model)
            self._check_lengths(model, rendered)
            if not self.batcher.is_alive:
                raise ApiError(503, "the server's worker has failed: see its log and start it again", "worker_failed")
            return Generation(self.batcher, self.metrics, model, rendered, wish, deadline, held.pop_all())

    def _check_lengths(self, model: ServedModel, prompts: Sequence[Prompt]) -> None:
        room = min(self.settings.max_prompt_tokens, model.loaded.config.max_positions - 1)
        for prompt in prompts:
            if not prompt.ids:
                raise ApiError(400, "the prompt must not be empty", param="prompt")
            if len(prompt.ids) > room:
                message = f"the prompt has {len(prompt.ids)} tokens, but {room} at most are possible here: shorten it"
                raise ApiError(400, message, "context_length_exceeded", "messages")

    def _token_limit(self, asked: int | None, default: int) -> int:
        limit = self.settings.max_tokens
        if asked is not None and asked > limit:
            raise ApiError(400, f"at most {limit} tokens can be asked for here (--max-tokens)", param="max_tokens")
        return min(default, limit) if asked is None else asked

    async def _answer(
        self, generation: Generation, formatter: ChatFormatter | CompletionFormatter, body: Sampled, request: Request
    ) -> Response:
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(generation, _events(generation, formatter, with_usage))
        with closing(generation):
            deltas = await _unless_gone(_collect(generation), request)
            whole = formatter.whole(generation.job, deltas)
        return Response(whole.model_dump_json(), media_type="application/json")


class EventStream(StreamingResponse):
    """Server-sent events that end, and give back what they hold, whatever the client does."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; gives up on a client that has stopped reading at the request's deadline."""
        with closing(self._generation), suppress(TimeoutError):
            async with asyncio.timeout_at(self._generation.deadline + _GRACE_S):
                await super().__call__(scope, receive, send)


async def _events(
    generation: Generation, formatter: ChatFormatter | CompletionFormatter, with_usage: bool
) -> AsyncIterator[str]:
    for chunk in formatter.opening(generation.job):
        yield _event(chunk)
    try:
        async for delta in generation.deltas(_KEEP_ALIVE_S):
            if delta is None:
                yield ": still here\n\n"
                continue
            for part in formatter.events(delta):
                yield _event(part)
    except ApiError as error:  # the status has been sent: the error comes as an event
        yield f"data: {json.dumps(error.body)}\n\n"
        return
    if with_usage:
        yield _event(formatter.closing(generation.job))
    yield "data: [DONE]\n\n"


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"


async def _collect(generation: Generation) -> list[Delta]:
    return [delta async for delta in generation.deltas() if delta is not None]


async def _unless_gone(work: Coroutine[Any, Any, list[Delta]], request: Request) -> list[Delta]:
    """The result of `work`, which is given up as soon as the client leaves. Raises `ApiError` 499 then, for the log."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _common_wishes(body: Sampled) -> dict[str, Any]:
    return {
        "n": body.n,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k or 0,
        "seed": body.seed,
        "stops": body.stops,
    }


def _from_ids(ids: list[int], model: ServedModel) -> Prompt:
    size = model.loaded.config.vocab_size
    if max(ids) >= size:
        raise ApiError(400, f"token ids must lie between 0 and {size - 1}, the model's vocabulary", param="prompt")
    return Prompt(tuple(ids), model.loaded.tokenizer.decode(ids, skip_special=False))


def _refuse(refusals: Mapping[str, str]) -> None:
    for name, why in refusals.items():
        raise ApiError(400, f"{name}: {why}", "unsupported", name)


# --- errors ------------------------------------------------------------------------------------------------------


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(PonderError)
    async def failed(request: Request, error: PonderError) -> Response:
        return ApiError(400 if isinstance(error, UsageError) else 500, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return ApiError(error.status_code, str(error.detail), headers=headers).response()

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        return JSONResponse(error_body(500, "a defect of the server: see its log"), 500)


def _invalid(errors: Sequence[Any]) -> ApiError:
    """What is wrong with a body, by the path of the field; of a union's branches, the one that fits furthest."""
    first = max(errors, key=lambda error: len(error["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    # the first part says that it is the body; unions add the names of their branches
    place = ".".join(str(part) for part in first["loc"][1:] if str(part).replace("_", "").isalnum())
    if not place:
        return ApiError(400, "the body must be a JSON object, sent as Content-Type: application/json")
    return ApiError(400, f"{place}: {first['msg']}", param=place)
