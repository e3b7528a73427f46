"""What mkdocs adds to the pages: the help of every command, from the command line itself."""

from typing import Any

import typer
from typer.cli import get_docs_for_click

from flows.cli import app


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page, with every command and its options under the heading of `reference/command-line.md`."""
    if page.file.src_uri != "reference/command-line.md":
        return markdown
    command = typer.main.get_command(app)
    help_text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="lmseg"), name="lmseg")
    # Its first line is a heading, which the page has already.
    return markdown + help_text.split("\n", 1)[1]
