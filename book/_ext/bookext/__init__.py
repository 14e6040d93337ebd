"""The Sphinx extension of this book: notebooks that run anywhere, pages that load fast, and what lies around them."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from bookext import diagrams, lighter, notebooks, reference, site


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_config_value("book_description", "", "html", str)
    app.connect("builder-inited", read_side_by_side)
    app.connect("env-before-read-docs", site.with_late_imports)
    app.connect("source-read", site.with_commands)
    app.connect("source-read", site.with_last_run)
    app.connect("doctree-read", site.with_numbers_kept)
    app.connect("doctree-read", site.with_long_names_broken)
    app.connect("autodoc-process-docstring", reference.without_types_in_words, priority=400)  # napoleon comes at 500
    app.connect("autodoc-process-docstring", reference.with_colons, priority=600)
    app.connect("doctree-read", reference.without_long_values)
    app.connect("doctree-resolved", diagrams.within)
    app.connect("doctree-resolved", site.with_runs_in_words)
    app.connect("env-get-outdated", site.with_changed_files)
    app.connect("env-get-outdated", site.with_page_of_last_run)
    app.connect("html-page-context", notebooks.add_buttons, priority=600)  # the theme's own come at 501
    app.connect("html-page-context", lighter.without_mathjax, priority=600)
    app.connect("html-collect-pages", site.forget_unread_modules, priority=400)  # the sources' own pages come at 500
    app.connect("build-finished", notebooks.write_notebooks)
    app.connect("build-finished", site.write_pages)
    app.connect("build-finished", lighter.lighten, priority=900)  # after all that write pages
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read_side_by_side(app: Sphinx) -> None:
    """Let several processes read pages: of these two, which do nothing then, Sphinx can't know that they allow it."""
    for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
        app.extensions[name].parallel_read_safe = True
