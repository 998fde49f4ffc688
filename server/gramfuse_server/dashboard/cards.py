"""A model's card, Markdown, as HTML that can do nothing: no HTML of its own, no links, no pictures."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FRONT_MATTER: Final = "---\n"
_LOWER: Final = 2
"""A page has a heading of its own, and the card's section one: the card's first is an h3."""
_LOWEST: Final = 6


def rendered(card: str) -> Markup:
    """Return a card as HTML: headings below the page's, tables as pages have them, everything else escaped."""
    markdown = _markdown()
    tokens = markdown.parse(_without_front_matter(card))
    heading = "card"
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = f"card-{place}"
            token.attrs["id"] = heading
        if token.type == "table_open":
            token.meta["heading"] = heading
        _fit(token)
        if token.type == "th_open" and not tokens[place + 1].content:
            token.tag = tokens[place + 2].tag = "td"  # a header that says nothing is none
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 - escaped by the renderer


def _without_front_matter(card: str) -> str:
    if card.startswith(_FRONT_MATTER):
        _, _, behind = card.removeprefix(_FRONT_MATTER).partition(f"\n{_FRONT_MATTER}")
        return behind or card
    return card


def _fit(token: "Token") -> None:
    if token.type in {"heading_open", "heading_close"}:
        token.tag = f"h{min(int(token.tag.removeprefix('h')) + _LOWER, _LOWEST)}"
    if token.type in {"th_open", "td_open"} and token.attrs.pop("style", None) == "text-align:right":
        token.attrs["class"] = "number"  # the content policy allows no inline style


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # noqa: PLC0415 - loaded with the first card

    def open_table(_: object, tokens: "Sequence[Token]", place: int, __: object, ___: object) -> str:
        group = f'<div class="table" tabindex="0" role="group" aria-labelledby="{tokens[place].meta["heading"]}">'
        return f"{group}\n<table>\n"

    def close_table(_: object, tokens: "Sequence[Token]", place: int, __: object, ___: object) -> str:
        del tokens, place
        return "</table>\n</div>\n"

    def name_picture(_: object, tokens: "Sequence[Token]", place: int, __: object, ___: object) -> str:
        picture = tokens[place]
        return Markup("<em>{} ({})</em>").format(picture.content, picture.attrs["src"])

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.disable(["link", "autolink", "html_inline", "html_block", "reference", "entity"])
    markdown.add_render_rule("table_open", open_table)
    markdown.add_render_rule("table_close", close_table)
    markdown.add_render_rule("image", name_picture)
    return markdown
