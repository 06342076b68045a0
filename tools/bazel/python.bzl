"""The Python that Bazel runs tests with: the virtual environment that `make setup` creates."""

_BUILD = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{python}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

def _venv_python_impl(ctx):
    root = ctx.path(Label("@rebus//:WORKSPACE")).dirname
    python = root.get_child(".venv").get_child("bin").get_child("python")
    if not python.exists:
        fail("%s does not exist; run `make setup` first" % python)
    ctx.file("BUILD.bazel", _BUILD.format(python = python))

venv_python = repository_rule(
    implementation = _venv_python_impl,
    local = True,
)
