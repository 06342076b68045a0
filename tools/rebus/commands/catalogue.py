"""``rebus components`` and ``rebus papers``: what is built, and on whose shoulders."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Annotated, Any, get_type_hints

import typer

from rebus.config import to_plain
from tools.rebus.output import Format, FormatOption, print_json, print_table, say


def components(
    kind: Annotated[str | None, typer.Argument(help="Only this kind: reader, encoder, objective, ...")] = None,
    name: Annotated[str | None, typer.Argument(help="One component: prints its settings.")] = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Lists the components that recipes can name; with KIND and NAME, the settings of one."""
    from rebus import registry

    if kind is not None and name is not None:
        _print_settings(registry.get(kind, name), format)
        return
    found = registry.components(kind)
    if format is Format.JSON:
        print_json([{**_identity(c), "settings": _settings(c.config)} for c in found])
        return
    print_table(
        ("kind", "name", "papers", "what it is"),
        ((c.kind, c.name, ", ".join(c.papers), _words(c.summary)) for c in found),
    )


def _words(summary: str) -> str:
    """A docstring's line without its markup for code."""
    return summary.replace("``", "")


def _identity(component: Any) -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "papers": list(component.papers),
        "summary": component.summary,
    }


def _settings(config: type) -> list[dict[str, Any]]:
    """Name, type and default of every setting; a required one has no default."""
    hints = get_type_hints(config)
    found: list[dict[str, Any]] = []
    for field in dataclasses.fields(config):
        setting: dict[str, Any] = {"name": field.name, "type": _type_name(hints[field.name])}
        if field.default is not dataclasses.MISSING:
            setting["default"] = to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            setting["default"] = to_plain(field.default_factory())
        found.append(setting)
    return found


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _print_settings(component: Any, format: Format) -> None:
    settings = _settings(component.config)
    if format is Format.JSON:
        print_json({**_identity(component), "settings": settings})
        return
    say(_words(component.summary))
    print_table(
        ("setting", "type", "default"), ((s["name"], s["type"], str(s.get("default", "(required)"))) for s in settings)
    )


def papers(
    status: Annotated[str, typer.Option(help="Only papers of this status: proved, built or catalogued.")] = "",
    family: Annotated[str, typer.Option(help="Only papers of this family.")] = "",
    format: FormatOption = Format.TABLE,
) -> None:
    """Prints the catalogue of papers: what is built of each, and the checks that prove it."""
    from rebus.errors import invalid
    from rebus.papers import Status, catalogue

    if status and status not in set(Status):
        raise invalid("--status", f"expected one of {', '.join(Status)}, found {status!r}")
    entries = [
        e for e in catalogue() if (not status or e.status == status) and (not family or e.paper.family == family)
    ]
    if format is Format.JSON:
        print_json(
            [
                {**to_plain(e.paper), "url": e.paper.url, "status": e.status.value}
                | {"components": list(e.components), "checks": list(e.checks)}
                for e in entries
            ]
        )
        return
    rows = ((e.paper.id, e.status.value, e.paper.title, e.paper.family, ", ".join(e.components)) for e in entries)
    print_table(("id", "status", "title", "family", "components"), rows)
    counts = Counter(e.status.value for e in entries)
    say(f"{len(entries)} papers: {', '.join(f'{counts[s.value]} {s.value}' for s in Status)}")
