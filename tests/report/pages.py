"""Reading a page as a browser would, without one."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

VOID = {"meta", "img", "input", "link", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text of each kind of tag."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.shown: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "tags that nothing closes"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)
            if self.open[-1] not in ("script", "style"):
                self.shown.append(data)


def require_harmless(page: str) -> Reader:
    """Fail unless the only script is the page's own, and nothing leaves the page."""
    read = Reader(page)
    scripts = read.text["script"]
    assert [tag for tag, _ in read.tags].count("script") == 1
    digest = base64.b64encode(hashlib.sha256("".join(scripts).encode()).digest()).decode()
    policy = next(a for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in str(policy["content"])
    assert "default-src 'none'" in str(policy["content"])
    for tag, attributes in read.tags:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form", "foreignobject")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "xlink:href"):
                assert str(value).startswith(("data:image/png;base64,", "#")), (tag, name, value)
    return read
