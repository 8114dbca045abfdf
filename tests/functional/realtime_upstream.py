"""A provider of realtime sessions: a WebSocket that answers `response.create` as the event's metadata asks.

metadata  {"deltas": "3", "audio": "1", "hang": "1", "usage": "null", "drop": "1"}
"""

import asyncio
import base64
import json
from typing import Any

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

KEY = "realtime-operator-key"
USAGE = {
    "total_tokens": 300,
    "input_tokens": 200,
    "output_tokens": 100,
    "input_token_details": {
        "text_tokens": 120,
        "audio_tokens": 80,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 60, "audio_tokens": 4},
    },
    "output_token_details": {"text_tokens": 40, "audio_tokens": 60},
}


class RealtimeUpstream:
    def __init__(self) -> None:
        self.received: list[str] = []
        self.sent: list[str] = []
        self.requests: list[web.Request] = []
        self.closed = asyncio.Event()
        self.refuse = 0
        app = web.Application()
        app.router.add_get("/v1/realtime", self.session)
        self.server = TestServer(app)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/v1"

    async def session(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.refuse:
            return web.json_response({"error": {"message": "no"}}, status=self.refuse)
        self.closed.clear()
        socket = web.WebSocketResponse(protocols=("realtime",), compress=False)
        await socket.prepare(request)
        await self.send(socket, {"type": "session.created", "session": {"model": request.query["model"]}})
        async for message in socket:
            assert message.type is WSMsgType.TEXT
            self.received.append(message.data)
            event = json.loads(message.data)
            if event["type"] == "response.create":
                await self.respond(socket, event["response"]["metadata"])
        self.closed.set()
        return socket

    async def send(self, socket: web.WebSocketResponse, event: dict[str, Any]) -> None:
        text = json.dumps(event, indent=1)  # a form that nobody makes again by chance
        self.sent.append(text)
        await socket.send_str(text)

    async def respond(self, socket: web.WebSocketResponse, asked: dict[str, str]) -> None:
        await self.send(socket, {"type": "response.created", "response": {"id": "resp_1", "usage": None}})
        for number in range(int(asked.get("deltas", "1"))):
            await self.send(socket, {"type": "response.output_text.delta", "delta": f"piece {number} and more " * 10})
            await asyncio.sleep(0)
        if "audio" in asked:
            sound = base64.b64encode(bytes(48_000)).decode()
            await self.send(socket, {"type": "response.output_audio.delta", "delta": sound})
        if "drop" in asked:
            assert socket._req is not None
            assert socket._req.transport is not None
            socket._req.transport.abort()
            return
        if "hang" in asked:
            return
        usage = None if asked.get("usage") == "null" else USAGE
        await self.send(socket, {"type": "response.done", "response": {"id": "resp_1", "usage": usage}})
