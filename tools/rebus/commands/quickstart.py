"""``rebus quickstart``: pictures to scored, served models, and a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import local
from rebus.client import Client
from rebus.jobs.revision import code_revision
from rebus.v1.evaluation_pb2 import Evaluation
from tools.rebus.commands.evaluate import print_scores
from tools.rebus.follow import INTERRUPTED
from tools.rebus.output import duration, print_table, say, stderr, stdout
from tools.rebus.quickstart import demo
from tools.rebus.quickstart.bars import Reached, judge
from tools.rebus.quickstart.sizes import Size, arguments
from tools.rebus.quickstart.view import PipelineView
from tools.rebus.session import Session, connected

FOLDER = Path(".rebus/quickstart")


@connected
def quickstart(
    session: Session,
    size: Annotated[
        Size, typer.Option(help="full meets the bars; smoke only shows that every step works.")
    ] = Size.FULL,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of training and evaluation.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the report.")] = FOLDER / "report.html",
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if a bar is missed.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Results made under the same value are reused. Default: the code's revision.")
    ] = None,
) -> None:
    """Runs the whole of Rebus once: ingest, curate, train, register, index, evaluate, promote, report.

    What an earlier run of the same code made on the same store is reused.
    """
    started = time.monotonic()
    with session.client() as client:
        revision = revision or code_revision()
        outputs = _run_pipeline(client, arguments(size, seed, revision), FOLDER / f"{size}-{seed}")
        evaluations: list[Evaluation] = [client.get(outputs[f"{part}_evaluation"]) for part in ("mllm", "embedder")]
        _write_report(client, outputs, {"size": size.value, "seed": str(seed), "code": revision}, output)
        reached = _print_results(evaluations)
        demo.answer_questions(client, outputs["mllm_model"], outputs["mllm_dataset"])
        demo.search(client, outputs["embedder_index"])
    took = duration(time.monotonic() - started)
    stdout().print(f"\nReport: {output.resolve()} (everything took {took})", soft_wrap=True, markup=False)
    if check and not all(bar.passed for bar in reached):
        say("a bar was missed", style="red")
        raise typer.Exit(1)


def _run_pipeline(client: Client, values: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The outputs of the pipeline: resource names."""
    try:
        with PipelineView() as view:
            return local.run(
                "end-to-end",
                values,
                endpoint=client.endpoint,
                credentials=client.credentials,
                folder=folder,
                on_progress=view,
            )
    except KeyboardInterrupt:
        say("stopped; the job at work goes on, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None


def _write_report(client: Client, outputs: Mapping[str, str], facts: Mapping[str, str], output: Path) -> None:
    with stderr().status("writing the report"):
        from tools.report.collect import collect
        from tools.report.render import render

        data = collect(
            client,
            title="Rebus quickstart",
            subtitle="Two models from pictures to scores: one answers questions, one finds pictures by their names.",
            evaluations=[outputs["mllm_evaluation"], outputs["embedder_evaluation"]],
            indexes=[outputs["embedder_index"]],
            facts=facts,
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(render(data), encoding="utf-8")


def _print_results(evaluations: Sequence[Evaluation]) -> list[Reached]:
    scores = [score for evaluation in evaluations for score in evaluation.scores]
    stdout().print("\nScores on held-out data:", style="bold")
    print_scores(scores)
    reached = judge(scores)
    stdout().print("\nBars:", style="bold")
    print_table(
        ("bar", "at least", "reached", ""),
        ((r.bar.name, r.bar.least, r.value, "passed" if r.passed else "missed") for r in reached),
    )
    return reached
