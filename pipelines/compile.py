"""Compiles every pipeline into ``pipelines/compiled/``, the files that Kubeflow Pipelines takes."""

from __future__ import annotations

import argparse
from pathlib import Path

COMPILED = Path(__file__).resolve().parent / "compiled"


def compile_all(folder: Path) -> list[Path]:
    """Writes ``<pipeline>.yaml`` for each pipeline below ``folder``; the same code gives the same bytes."""
    from kfp import compiler

    from pipelines.end_to_end import PIPELINES

    paths = []
    for name, pipeline in PIPELINES.items():
        paths.append(folder / f"{name}.yaml")
        compiler.Compiler().compile(pipeline, str(paths[-1]))
    return paths


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    COMPILED.mkdir(exist_ok=True)
    for path in compile_all(COMPILED):
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
