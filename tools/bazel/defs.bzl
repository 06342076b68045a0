"""The two rules that the BUILD files use."""

def rebus_library(name, deps = [], **kwargs):
    """All Python of a folder with the files it reads.

    A floor depends on the floors right below it; import-linter makes sure that it imports nothing else.
    """
    native.py_library(
        name = name,
        srcs = native.glob(["**/*.py"], allow_empty = True),
        data = native.glob(
            ["**/*.%s" % ending for ending in ["j2", "pyi", "tsv", "typed", "yaml"]],
            allow_empty = True,
        ),
        visibility = ["//visibility:public"],
        deps = deps,
        **kwargs
    )

def rebus_tests(deps, data = []):
    """One test target, named as its folder, that runs all fast tests of the folder with pytest."""
    folder = native.package_name()

    # Tests of other folders may import these.
    native.py_library(
        name = "files",
        srcs = native.glob(["**/*.py"]),
        visibility = ["//visibility:public"],
        deps = deps,
    )
    native.py_test(
        name = folder.split("/")[-1],
        timeout = "long",
        srcs = ["//tools/bazel:run_pytest.py"],
        args = [folder],
        data = native.glob(["**"], exclude = ["**/*.py", "BUILD.bazel"]) + data + ["//:tree"],
        main = "//tools/bazel:run_pytest.py",
        deps = [":files", "//tests:conftest"],
    )
