"""The reference of the public names, from their docstrings: ``python docs/reference.py [FOLDER]``, then open FOLDER/index.html.

PUBLIC is the one list of public names: what is not in it may change without notice. ``tests/test_reference.py`` runs their examples.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

PUBLIC: dict[str, tuple[str, ...]] = {
    "mpt_jax": ("load", "Predictor", "Query", "Answer", "Search", "UserError"),
    "mpt_jax.tasks": ("jsonl", "csv", "tsv", "rows", "scorer", "Score", "add_score", "TaskError"),
    "mpt_jax.data.spelling": ("writer",),
    "mpt_jax.methods.table": ("register",),
    "mpt_jax.methods.method": ("Method", "Part", "Start"),
    "mpt_jax.model.families": ("register",),
    "mpt_jax.model.families.family": ("Family", "Network", "Adaptation", "Adapted", "Rows", "Outputs", "Stack", "Decoded", "real"),
    "mpt_jax.model.families.naming": ("Entry",),
    "mpt_jax.model.formats": ("read_backbone", "restore", "write_backbone"),
    "mpt_jax.model.formats.prompts": ("read",),
    "mpt_jax.model.formats.prompt_writers": ("write",),
}


def module(name: str) -> ModuleType:
    """A module that shows its public names alone; pdoc reads ``__all__`` and the names that a module holds by then."""
    found = importlib.import_module(name)
    for public in PUBLIC[name]:
        setattr(found, public, getattr(found, public))  # mpt_jax imports its own when they are asked for
    found.__all__ = list(PUBLIC[name])
    return found


def write(folder: str) -> None:
    """Writes HTML pages, one for each module of PUBLIC."""
    import pdoc.doc
    import pdoc.render

    pdoc.render.configure(docformat="markdown", show_source=False, search=True)
    pages = {name: pdoc.doc.Module(module(name)) for name in PUBLIC}
    for name, page in pages.items():
        file = Path(folder, *name.split(".")).with_suffix(".html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pdoc.render.html_module(page, pages), encoding="utf-8")
    Path(folder, "index.html").write_text(pdoc.render.html_index(pages), encoding="utf-8")
    Path(folder, "search.js").write_text(pdoc.render.search_index(pages), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "reference")
