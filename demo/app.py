"""
The demo's server: a page, its session, and the websockets of that session.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar, Final

from aiohttp import WSMsgType, web
from aiohttp_session import get_session, session_middleware
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiohttp_session_ws import (
    SessionWSRegistry,
    WebSocketView,
    end_identity_ws,
    end_other_sessions_ws,
    end_session_ws,
    get_session_ws_id,
    registry_from,
    renew_session_ws,
    rpc,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.close_codes import SESSION_ENDED, Close
from aiohttp_session_ws.typing import WebSocketOptions

from .calls import make_calls

HERE: Final = Path(__file__).parent
PAGES: Final = {"/": "index.html", "/chat": "chat.html", "/calls": "calls.html"}

routes = web.RouteTableDef()


async def user_of(request: web.Request) -> str | None:
    """
    Return whom the session of a request belongs to, ``None`` for nobody.
    """
    user: str | None = (await get_session(request)).get("user")
    return user


async def may_connect(request: web.Request) -> bool | Close:
    """
    Let everybody connect but to the chat and the calls, whose pages are told to log in.
    """
    open_to_all = request.path not in ("/chat/ws", "/calls/ws")
    if open_to_all or await user_of(request) is not None:
        return True
    # A page's script sees this code and reason; of a 403 it would see nothing, and try again.
    return SESSION_ENDED.replace(None, "log in first")


async def describe(request: web.Request) -> dict[str, object]:
    """
    Return what the page shows of its session.
    """
    session_ws_id = await get_session_ws_id(request)
    short = None if session_ws_id is None else str(session_ws_id)[:8]
    return {"id": short, "user": await user_of(request)}


async def tell_counts(
    registry: SessionWSRegistry, session_ws_id: Hashable, user: str | None
) -> None:
    """
    Tell a session how many sockets it has open, and its user how many in all sessions.
    """
    count = len(await registry.connections(session=session_ws_id))  # on all servers
    await registry.send_session_json(session_ws_id, {"type": "sockets", "count": count})
    if user is not None:
        sockets = await registry.connections(identity=user)
        sessions = len({socket.session_ws_id for socket in sockets})
        message = {"type": "everywhere", "sockets": len(sockets), "sessions": sessions}
        await registry.send_identity_json(user, message)


async def page(request: web.Request) -> web.Response:
    # Not a FileResponse: aiohttp_session sets no cookie with a stream.
    text = (HERE / PAGES[request.path]).read_text("utf-8")
    headers = {"Cache-Control": "no-store"}
    return web.Response(text=text, content_type="text/html", headers=headers)


async def script(request: web.Request) -> web.FileResponse:
    """
    Return the library's side of all pages: a socket that reconnects, and calls over it.
    """
    return web.FileResponse(rpc.STATIC_DIR / "session-ws.js")


@routes.get("/state")
async def state(request: web.Request) -> web.Response:
    return web.json_response(await describe(request), headers={"Cache-Control": "no-store"})


# What changes a session is a POST: a browser may repeat or prefetch a GET, any page can
# cause one with an <img>, and a SameSite=Lax cookie travels with a link from elsewhere
# but not with a form that is posted from there.


@routes.post("/reset")
async def reset(request: web.Request) -> web.Response:
    """
    Give the session a new id; its sockets close and reconnect.
    """
    response = web.Response(status=204)
    await renew_session_ws(request, response)
    return response


@routes.post("/login")
async def log_in(request: web.Request) -> web.Response:
    """
    Write the user into the session.

    There is no more to do: the registry asks ``identify`` and sees that the session belongs to
    somebody (else) now, so sockets that were opened before close and reconnect.
    """
    form = await request.post()
    name = str(form.get("name", "")).strip()[:40]
    if not name:
        raise web.HTTPBadRequest(text="a name is needed")
    session = await get_session(request)
    session["user"] = name
    return web.Response(status=204)


@routes.post("/logout")
async def log_out(request: web.Request) -> web.Response:
    """
    End the session and all its sockets, for good.
    """
    response = web.Response(status=204)
    await end_session_ws(request, response)
    return response


@routes.post("/logout-everywhere")
async def log_out_everywhere(request: web.Request) -> web.Response:
    """
    End all sessions of the user, with or without an open socket.
    """
    response = web.Response(status=204)
    await end_identity_ws(request, response)
    return response


@routes.post("/logout-elsewhere")
async def log_out_elsewhere(request: web.Request) -> web.Response:
    """
    End all other sessions of the user, and every copy of this one's cookie.
    """
    response = web.Response(status=204)
    if not await end_other_sessions_ws(request, response):
        raise web.HTTPConflict(text="this session has ended meanwhile")
    return response


@routes.get("/ws")
async def websocket(request: web.Request) -> web.WebSocketResponse:
    """
    Say whose socket it is, then pass what a tab says to all tabs of its session.
    """
    registry = registry_from(request)
    async with AsyncExitStack() as afterwards, session_ws(request, max_msg_size=4096) as ws:
        session_ws_id, user = await get_session_ws_id(request), await user_of(request)
        # Afterwards this socket is no longer counted.
        afterwards.push_async_callback(tell_counts, registry, session_ws_id, user)
        await ws.send_json({"type": "session", **await describe(request)})
        await tell_counts(registry, session_ws_id, user)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                said = {"type": "said", "text": message.data}
                await registry.send_session_json(session_ws_id, said)
    return ws


@routes.view("/chat/ws")
class Chat(WebSocketView):
    """
    One tab in the chat: it tells all who are there what its user does and says.
    """

    options: ClassVar[WebSocketOptions] = {"max_msg_size": 4096}

    async def on_open(self) -> None:
        await self.tell("here")

    async def on_message(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.tell("says", message)

    async def on_close(self, code: int) -> None:
        await self.tell("gone", str(code))

    async def tell(self, what: str, text: str = "") -> None:
        # A push, which a tab that reads too slowly holds up for nobody. It reaches the tabs
        # of other servers too, and other pages, which pass it over.
        message = {"type": "chat", "who": self.ws.identity, "what": what, "text": text}
        await registry_from(self.request).broadcast_json(message)


def make_app(
    registry: SessionWSRegistry | None = None, key: bytes | None = None
) -> web.Application:
    """
    Return the demo's application.

    Args:
        registry: A registry that knows other servers; by default there are none.
        key: The key of the cookies, the same for all servers; by default one of its own,
            so that its sessions end with the process.
    """
    fernet = Fernet(Fernet.generate_key() if key is None else key)
    storage = EncryptedCookieStorage(fernet, cookie_name="session_ws_demo", samesite="Lax")
    if registry is None:
        registry = SessionWSRegistry(identify=user_of, authorize=may_connect)
    app = web.Application(middlewares=[session_middleware(storage), session_ws_middleware])
    setup(app, registry)
    app.add_routes(routes)
    app.add_routes([web.get(path, page) for path in PAGES])
    app.router.add_get("/calls/ws", make_calls().handler)
    app.router.add_get("/static/session-ws.js", script)
    app.router.add_static("/static/", HERE / "static")
    return app
