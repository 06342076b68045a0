"""``rebus models``: versions of models, and aliases that point at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from rebus.v1.model_pb2 import (
    CreateModelVersionRequest,
    ListModelsRequest,
    ListModelVersionsRequest,
    ModelVersion,
    SetModelAliasRequest,
)
from tools.rebus import listing, names
from tools.rebus.commands import language_models
from tools.rebus.output import Format, FormatOption, LimitOption, ago, print_fields, print_json, print_table, say
from tools.rebus.session import Session, connected

app = typer.Typer(
    no_args_is_help=True, help="Models: list, show, card, register a run, set an alias, import, add, export."
)
app.command("import")(language_models.import_model)
app.command("add")(language_models.add)
app.command("export")(language_models.export_model)
app.command("card")(language_models.card)
ModelArgument = Annotated[str, typer.Argument(help="The model.")]
VersionArgument = Annotated[
    str, typer.Argument(help="NAME (its newest version), NAME/VERSION, NAME/ALIAS, or a full name.")
]


@app.command("list")
@connected
def list_models(session: Session, limit: LimitOption = 50, format: FormatOption = Format.TABLE) -> None:
    """Lists the models."""
    with session.client("training") as client:
        found = listing.items(client.models.ListModels, ListModelsRequest(), "models", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = ((m.name, m.latest_version.rpartition("/")[2], _aliases(m.aliases), ago(m.create_time)) for m in found)
    print_table(("name", "newest", "aliases", "age"), rows)


@app.command()
@connected
def versions(
    session: Session, model: ModelArgument, limit: LimitOption = 50, format: FormatOption = Format.TABLE
) -> None:
    """Lists the versions of a model."""
    request = ListModelVersionsRequest(parent=names.full("models", model))
    with session.client("training") as client:
        found = listing.items(client.models.ListModelVersions, request, "model_versions", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = ((v.name, v.architecture, v.num_parameters, v.run, ago(v.create_time)) for v in found)
    print_table(("name", "architecture", "parameters", "run", "age"), rows)


@app.command()
@connected
def show(session: Session, version: VersionArgument, format: FormatOption = Format.TABLE) -> None:
    """Shows one version: its digest, its run, and the mixture it was trained on."""
    with session.client("training") as client:
        _print_version(client.get(names.version(client, "models", version)), format)


@app.command()
@connected
def register(
    session: Session,
    model: ModelArgument,
    run: Annotated[
        str, typer.Argument(help="The run whose last checkpoint becomes the version; latest is the newest run.")
    ],
    format: FormatOption = Format.TABLE,
) -> None:
    """Registers a run's last checkpoint as a model's next version; the model is made if there is none."""
    with session.client("training") as client:
        request = CreateModelVersionRequest(parent=names.full("models", model), run=names.job(client, "runs", run))
        _print_version(client.models.CreateModelVersion(request), format)


@app.command()
@connected
def alias(
    session: Session,
    version: VersionArgument,
    alias: Annotated[str, typer.Argument(help="The alias, e.g. champion.")],
    expected: Annotated[
        str | None, typer.Option(help="Only if the alias points at this version now; '' means nowhere.")
    ] = None,
) -> None:
    """Points an alias at a version."""
    with session.client("training") as client:
        target = client.get(names.version(client, "models", version)).name
        request = SetModelAliasRequest(name=target.partition("/versions/")[0], alias=alias, model_version=target)
        if expected is not None:
            request.expected_version = expected and names.version(client, "models", expected)
        client.models.SetModelAlias(request)
    say(f"{alias} points at {target}")


def _print_version(version: ModelVersion, format: Format) -> None:
    if format is Format.JSON:
        print_json(version)
        return
    fields: list[tuple[str, object]] = [
        ("name", version.name),
        ("architecture", version.architecture),
        ("parameters", version.num_parameters),
        ("run", version.run),
        ("recipe digest", version.recipe_digest),
        ("code", version.code_revision),
        ("parents", ", ".join(version.parents)),
        ("imported from", version.imported_from),
        ("digest", version.digest),
    ]
    fields += [
        (f"trained on {share.source}", f"{share.num_samples} samples of {share.dataset_version}")
        for share in version.mixture
    ]
    print_fields(fields)


def _aliases(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} {version.rpartition('/')[2]}" for alias, version in sorted(aliases.items()))
