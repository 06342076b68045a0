"""``rebus eval``: scores, each beside what it must be read against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from rebus.v1.contamination_pb2 import ContaminationMatch, ContaminationPolicy
from rebus.v1.evaluation_pb2 import (
    BenchmarkSpec,
    CreateEvaluationRequest,
    Evaluation,
    ListEvaluationsRequest,
    ListPredictionsRequest,
    Score,
)
from tools.rebus import listing, names
from tools.rebus.commands.contamination import ways
from tools.rebus.commands.train import state_of
from tools.rebus.follow import follow
from tools.rebus.output import Format, FormatOption, LimitOption, ago, print_json, print_table, say
from tools.rebus.session import Session, connected

app = typer.Typer(no_args_is_help=True, help="Evaluations: create, list, show, look at single answers.")
EvaluationArgument = Annotated[str, typer.Argument(help="The evaluation; latest is the newest.")]


@app.command()
@connected
def create(
    session: Session,
    model: Annotated[str, typer.Argument(help="The model: NAME, NAME/VERSION or NAME/ALIAS.")],
    dataset: Annotated[str, typer.Argument(help="Where the items come from: NAME or NAME/VERSION.")],
    benchmarks: Annotated[
        list[str], typer.Option("--benchmark", "-b", help="What to run, e.g. scene-questions; repeatable.")
    ],
    split: Annotated[str, typer.Option(help="The split that the items come from.")] = "test",
    max_items: Annotated[int, typer.Option(min=0, help="Most items of each benchmark; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of item selection and of the intervals.")] = 0,
    contamination: Annotated[
        bool, typer.Option(help="Look for the items in the model's training data, and report what is found.")
    ] = True,
    max_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fail if the training data hold a larger share of the items.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="How an item is found in the training data: text, image, embedding, with commas.")
    ] = "text",
    format: FormatOption = Format.TABLE,
) -> None:
    """Scores a model version on benchmarks."""
    with session.client("evaluation", "training", "ingest") as client:
        rows = names.version(client, "datasets", dataset)
        wanted = Evaluation(
            model_version=names.version(client, "models", model),
            benchmarks=[
                BenchmarkSpec(benchmark=b, dataset_version=rows, split=split, max_items=max_items) for b in benchmarks
            ],
            seed=seed,
            contamination_policy=ContaminationPolicy(
                skip=not contamination, max_share=max_share, match=ContaminationMatch(by=ways(by))
            ),
        )
        started = client.evaluation.CreateEvaluation(CreateEvaluationRequest(evaluation=wanted))
        _print_evaluation(follow(client, started.name), format)


@app.command("list")
@connected
def list_evaluations(session: Session, limit: LimitOption = 20, format: FormatOption = Format.TABLE) -> None:
    """Lists the evaluations, newest first."""
    with session.client("evaluation") as client:
        found = listing.items(client.evaluation.ListEvaluations, ListEvaluationsRequest(), "evaluations", limit)
    if format is Format.JSON:
        print_json(found)
        return
    rows = (
        (e.name, state_of(e.job), e.model_version, ", ".join(b.benchmark for b in e.benchmarks), ago(e.job.create_time))
        for e in found
    )
    print_table(("name", "state", "model", "benchmarks", "age"), rows)


@app.command()
@connected
def show(session: Session, name: EvaluationArgument, format: FormatOption = Format.TABLE) -> None:
    """Shows the scores of an evaluation."""
    with session.client("evaluation") as client:
        _print_evaluation(client.get(names.job(client, "evaluations", name)), format)


@app.command()
@connected
def predictions(
    session: Session,
    name: EvaluationArgument,
    group: Annotated[str, typer.Option(help="Only this group, e.g. count.")] = "",
    wrong: Annotated[bool, typer.Option("--wrong", help="Only answers that are not fully right.")] = False,
    limit: LimitOption = 20,
    format: FormatOption = Format.TABLE,
) -> None:
    """Lists single answers beside what is right, and what the model says without the picture."""
    with session.client("evaluation") as client:
        request = ListPredictionsRequest(parent=names.job(client, "evaluations", name))
        found = listing.matching(
            client.evaluation.ListPredictions,
            request,
            "predictions",
            limit,
            lambda p: (not group or p.group == group) and not (wrong and p.score >= 1),
        )
    if format is Format.JSON:
        print_json(found)
        return
    rows = (
        (p.group, p.sample_id, p.question, p.prediction, " | ".join(p.references), p.score, p.text_only_prediction)
        for p in found
    )
    print_table(("group", "sample", "question", "answer", "right", "score", "without picture"), rows)


def _print_evaluation(evaluation: Evaluation, format: Format) -> None:
    from rebus.store.lineage import contaminated

    if format is Format.JSON:
        print_json(evaluation)
        return
    say(f"{evaluation.name}: {evaluation.model_version}, {state_of(evaluation.job)}")
    if evaluation.job.error.message:
        say(evaluation.job.error.message)
    for report in evaluation.contamination:
        say(f"training data, {report.benchmark_version} {report.split}: {contaminated(report)}")
    print_scores(evaluation.scores)


def print_scores(scores: Iterable[Score]) -> None:
    """Every score with its 95 % interval and its baselines; if items were seen in training, also over the others."""
    scores = list(scores)
    rows = (
        (
            score.benchmark,
            score.group or "all",
            score.metric,
            score.value,
            f"{score.low:.3f}-{score.high:.3f}",
            *(getattr(score, name) if score.HasField(name) else None for name in ("chance", "majority", "text_only")),
            score.num_items,
            *((score.clean.value, score.clean.num_items) if score.HasField("clean") else (None, None)),
        )
        for score in scores
    )
    columns = ("benchmark", "group", "metric", "value", "95 % interval", "chance", "majority", "text only", "items")
    if any(score.HasField("clean") for score in scores):
        columns = (*columns, "not seen", "items not seen")
    print_table(columns, (row[: len(columns)] for row in rows))
