"""``rebus train`` and ``rebus runs``: recipes into checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
import yaml

from pipelines.recipe_files import read_recipe
from rebus.client import Client
from rebus.errors import invalid
from rebus.v1.common_pb2 import JobExit, JobStatus
from rebus.v1.training_pb2 import CreateRunRequest, ListRunsRequest, ResumeRunRequest, Run
from tools.rebus import listing, names
from tools.rebus.follow import follow
from tools.rebus.output import Format, FormatOption, LimitOption, ago, print_fields, print_json, print_table, say
from tools.rebus.session import Session, connected, stored
from tools.rebus.settings import overlay, pairs

runs = typer.Typer(no_args_is_help=True, help="Runs, and jobs of every kind: list, show, watch, cancel, resume.")
RunArgument = Annotated[str, typer.Argument(help="The run; latest is the newest.")]
JobArgument = Annotated[str, typer.Argument(help="A run, or any job by its full name, e.g. indexes/latest.")]
DetachOption = Annotated[bool, typer.Option("--detach", help="Start it and return at once.")]


@connected
def train(
    session: Session,
    recipe: Annotated[str, typer.Argument(help="A packaged recipe's name, e.g. smoke-scenes, or a .yaml file.")],
    datasets: Annotated[
        list[str],
        typer.Option(
            "--dataset",
            "-d",
            metavar="[NAME=]VERSION",
            help="What the recipe's dataset NAME stands for, e.g. scenes=scenes/3; repeatable. "
            "The name may be left out where the recipe reads one dataset.",
        ),
    ],
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the run; without it, the recipe's.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A change to the recipe, e.g. stages.0.steps=50; repeatable."),
    ] = None,
    detach: DetachOption = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Trains a recipe on dataset versions."""
    values = overlay(read_recipe(recipe), changes or [])
    with session.client("training", "ingest") as client:
        wanted = Run(recipe=yaml.safe_dump(values, sort_keys=False), datasets=_bindings(client, values, datasets))
        if seed is not None:
            wanted.seed = seed
        run: Run = client.training.CreateRun(CreateRunRequest(run=wanted))
        _finish(client, run, detach, format)


def _bindings(client: Client, recipe: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """The recipe's dataset names with the full names of versions."""
    if len(texts) == 1 and "=" not in texts[0]:
        wanted = dataset_names(recipe)
        if len(wanted) != 1:
            raise invalid("--dataset", f"the recipe reads {', '.join(wanted) or 'no dataset'}; say NAME=VERSION")
        texts = [f"{wanted[0]}={texts[0]}"]
    return {name: names.version(client, "datasets", version) for name, version in pairs(texts, "--dataset")}


def dataset_names(recipe: Mapping[str, Any]) -> list[str]:
    """The dataset names that a recipe's ``data`` reads, as far as it is well-formed; the service checks the rest."""
    data = recipe.get("data")
    bindings = data.values() if isinstance(data, Mapping) else ()
    return sorted({str(b["dataset"]) for b in bindings if isinstance(b, Mapping) and "dataset" in b})


def _finish(client: Client, run: Run, detach: bool, format: Format) -> None:
    if detach:
        say(f"started; watch it: rebus runs watch {run.name}")
    else:
        run = follow(client, run.name)
    _print_run(run, format)


def _print_run(run: Run, format: Format) -> None:
    if format is Format.JSON:
        print_json(run)
        return
    fields: list[tuple[str, object]] = [
        ("name", run.name),
        ("state", state_of(run.job)),
        ("error", run.job.error.message),
        ("ended by", exit_of(run.job)),
        ("step", run.step),
        ("seed", run.seed),
        *((f"dataset {name}", version) for name, version in sorted(run.datasets.items())),
        ("started from", ", ".join(sorted(set(run.model_versions.values())))),
        *((key.replace("_", " "), value) for key, value in sorted(run.metrics.items())),
        ("checkpoint", run.checkpoint),
        ("recipe digest", run.recipe_digest),
        ("code", run.code_revision),
    ]
    for share in run.mixture:
        consumed = f"{share.num_samples} samples, {share.num_tokens} tokens, {share.num_images} images"
        fields.append((f"consumed {share.source}", consumed))
    print_fields(fields)


def state_of(job: JobStatus) -> str:
    """``running 40%``, ``succeeded``: a job's state for people."""
    text = JobStatus.State.Name(job.state).lower()
    return f"{text} {job.progress:.0%}" if job.state == JobStatus.RUNNING else text


def exit_of(job: JobStatus) -> str:
    """``out of memory (SIGKILL)``: what ended a job's last attempt; empty if that ended well or goes on."""
    text = JobExit.Reason.Name(job.exit.reason).lower().replace("_", " ") if job.exit.reason else ""
    return f"{text} ({job.exit.signal})" if job.exit.signal else text


@runs.command("list")
@connected
def list_runs(session: Session, limit: LimitOption = 20, format: FormatOption = Format.TABLE) -> None:
    """Lists the runs, newest first."""
    with session.client("training") as client:
        found = listing.items(client.training.ListRuns, ListRunsRequest(), "runs", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = (
        (r.name, state_of(r.job), r.step, r.metrics.get("loss"), ", ".join(sorted(r.datasets.values())), _age(r))
        for r in found
    )
    print_table(("name", "state", "step", "loss", "datasets", "age"), rows)


def _age(run: Run) -> str:
    return ago(run.job.create_time)


@runs.command()
@connected
def show(session: Session, run: RunArgument, format: FormatOption = Format.TABLE) -> None:
    """Shows one run: its state, metrics, checkpoint, and the mixture it consumed."""
    with session.client("training") as client:
        _print_run(client.get(names.job(client, "runs", run)), format)


@runs.command()
@connected
def watch(session: Session, job: JobArgument, format: FormatOption = Format.TABLE) -> None:
    """Follows a job to its end."""
    with session.client(names.service_of(job)) as client:
        name = names.resolve(client, job)
        done = follow(client, name)
    if format is Format.JSON:
        print_json(done)
        return
    print_fields((("name", name), ("state", state_of(done.job))))


@runs.command("logs")
@stored
def show_logs(session: Session, job: JobArgument) -> None:
    """Prints what a job has written to its output so far; reads the store itself."""
    from rebus.jobs import kinds, logs
    from rebus.store import Store, documents

    store = Store.open(session.store_url)
    name = job if "/" in job else f"runs/{job}"
    cls = documents.TYPES[kinds.collection_of(name)]
    if name.endswith(f"/{names.LATEST}"):
        newest, _ = documents.list_page(store, cls, page_size=1, newest_first=True)
        name = newest[0].name if newest else name  # pyright: ignore[reportAttributeAccessIssue]
    documents.get(store, cls, name)
    for chunk in logs.read(store, name):
        typer.echo(chunk.decode(errors="replace"), nl=False)


@runs.command()
@connected
def cancel(session: Session, job: JobArgument) -> None:
    """Asks a job to stop."""
    with session.client(names.service_of(job)) as client:
        name = names.resolve(client, job)
        client.cancel(name)
    say(f"{name} was asked to stop")


@runs.command()
@connected
def resume(
    session: Session, run: RunArgument, detach: DetachOption = False, format: FormatOption = Format.TABLE
) -> None:
    """Starts a failed or cancelled run again from its last checkpoint."""
    with session.client("training") as client:
        request = ResumeRunRequest(name=names.job(client, "runs", run))
        _finish(client, client.training.ResumeRun(request), detach, format)
