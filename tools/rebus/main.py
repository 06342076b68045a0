"""Entry point of the ``rebus`` command.

Only what parses the command line is imported here; services, torch and the rest come when a command needs them.
"""

from __future__ import annotations

from typing import Any

import typer

from tools.rebus.commands import (
    catalogue,
    contamination,
    datasets,
    doctor,
    evaluate,
    export,
    generate,
    ingest,
    lineage,
    maintenance,
    models,
    quickstart,
    retrieval,
    tokens,
    train,
    up,
)
from tools.rebus.errors import RebusGroup
from tools.rebus.session import DebugOption, EndpointOption, Settings, StoreOption

app = typer.Typer(cls=RebusGroup, no_args_is_help=True, pretty_exceptions_enable=False)

_PANELS: dict[str, dict[str, Any]] = {
    "Start": {"quickstart": quickstart.quickstart, "up": up.up, "doctor": doctor.doctor},
    "Make": {
        "ingest": ingest.ingest,
        "datasets": datasets.app,
        "export": export.export,
        "train": train.train,
        "runs": train.runs,
        "models": models.app,
        "index": retrieval.index,
        "eval": evaluate.app,
    },
    "Use": {"generate": generate.generate, "search": retrieval.search, "embed": retrieval.embed},
    "Look": {
        "lineage": lineage.lineage,
        "contamination": contamination.contamination,
        "components": catalogue.components,
        "papers": catalogue.papers,
    },
    "Maintain": {"fsck": maintenance.fsck, "gc": maintenance.gc, "tokens": tokens.app},
}

for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, rich_help_panel=_panel)(_command)


@app.callback()
def main(
    ctx: typer.Context, endpoint: EndpointOption = None, store: StoreOption = None, debug: DebugOption = False
) -> None:
    """Rebus: multimodal models from pictures to a scored, served model.

    Every command calls a server (--endpoint) or hosts the services itself for as long as it runs.
    """
    ctx.ensure_object(Settings).add(endpoint=endpoint, store=store, debug=debug)
