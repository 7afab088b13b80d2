"""The playground and the API's documentation: files of static/, read once, from no other host."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Page:
    """One file, with an ETag so that a browser asks and need not fetch.

    Args:
        name: of the file in static/.
    """

    def __init__(self, name: str) -> None:
        self._content = (files("chitu_like.server") / "static" / name).read_bytes()
        self._media_type = MEDIA_TYPES[name[name.rindex(".") :]]
        self._etag = f'"{hashlib.sha256(self._content).hexdigest()[:16]}"'

    async def show(self, request: Request) -> Response:
        """Answer with the file, or with 304 where the browser has it."""
        headers = {"ETag": self._etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self._etag:
            return Response(status_code=304, headers=headers)
        return Response(self._content, headers=headers, media_type=self._media_type)


def page_routes() -> list[Route]:
    """`/`, `/docs` and every file of static/ under its name."""
    folder = files("chitu_like.server") / "static"
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if "." + entry.name.rpartition(".")[2] in MEDIA_TYPES
    )
    pages = {f"/static/{name}": Page(name) for name in names}
    pages["/"] = pages["/static/index.html"]
    pages["/docs"] = pages["/static/docs.html"]
    pages["/favicon.ico"] = pages["/static/icon.svg"]
    return [Route(path, page.show, methods=["GET"]) for path, page in pages.items()]
