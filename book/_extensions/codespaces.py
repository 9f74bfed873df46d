"""One more button beside those for Colab and Binder: GitHub's own editor."""

from typing import Any

from sphinx.application import Sphinx


def add_button(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    doctree: object,
) -> None:
    """Add the button wherever the theme has put buttons that run a page."""
    options = app.config.html_theme_options
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            path = options["repository_url"].partition("github.com/")[2]
            group["buttons"].append(
                {
                    "type": "link",
                    "text": "Codespaces",
                    "tooltip": "Launch on Codespaces",
                    "icon": "fa-brands fa-github",
                    "url": f"https://codespaces.new/{path}/tree/{options['repository_branch']}?quickstart=1",
                }
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Come after the theme's own buttons (501)."""
    app.connect("html-page-context", add_button, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
