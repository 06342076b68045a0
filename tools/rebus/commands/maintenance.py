"""``rebus fsck`` and ``rebus gc``: the store's health."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from typing import Annotated

import typer
from rich.progress import Progress

from rebus.errors import invalid
from tools.rebus.output import Format, FormatOption, print_json, print_table, say, size, stderr
from tools.rebus.session import Session, stored

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@stored
def fsck(session: Session, format: FormatOption = Format.TABLE) -> None:
    """Reads everything in the store and names what was altered or is missing; exit code 1 if anything is."""
    from rebus.store import Store, maintenance

    store = Store.open(session.store_url)
    with Progress(console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        task = progress.add_task("reading the store", total=None)
        problems = maintenance.fsck(
            store, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    if format is Format.JSON:
        print_json([{"path": p.path, "description": p.description} for p in problems])
    elif problems:
        print_table(("what", "problem"), ((p.path, p.description) for p in problems))
    if problems:
        say(f"{len(problems)} problems in {store.url}", style="red")
        raise typer.Exit(1)
    say(f"{store.url} is whole")


@stored
def gc(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    grace: Annotated[str, typer.Option(help="Keep what is younger: 30m, 24h, 7d.")] = "24h",
    format: FormatOption = Format.TABLE,
) -> None:
    """Removes what interrupted work left behind: objects that nothing refers to."""
    from rebus.store import Store, maintenance

    store = Store.open(session.store_url)
    found = maintenance.garbage(store, grace=parse_duration(grace))
    if not dry_run:
        maintenance.collect(store, found)
    if format is Format.JSON:
        print_json([{"path": info.path, "size": info.size, "removed": not dry_run} for info in found])
        return
    folders: Counter[str] = Counter()
    for info in found:
        folders["/".join(info.path.split("/")[:2])] += info.size
    if folders:
        print_table(("below", "size"), ((folder, size(total)) for folder, total in sorted(folders.items())))
    verb = "would be removed" if dry_run else "removed"
    say(f"{len(found)} objects, {size(sum(info.size for info in found))}, {verb}")


def parse_duration(text: str) -> timedelta:
    """``90s``, ``30m``, ``24h``, ``7d``."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise invalid("--grace", f"expected a number and one of s, m, h, d, as in 24h; found {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
