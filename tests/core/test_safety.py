"""No module executes what a file holds."""

import ast

import pytest

from tests.support.modules import Module, imports, modules

CARRIES_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}
MAY_RUN_PROGRAMS = ["histocodec.patched"]  # the one that its user names on the command line
MAY_LOAD_CHECKPOINTS = ["histocodec.train.loop", "histocodec.train.vae.loop"]  # of one's own training


def calls(module: Module) -> list[tuple[str, dict[str | None, str]]]:
    """Every call in a module: what is called, and the keyword arguments as text."""
    return [
        (ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("name", modules())
def test_no_module_reads_what_can_carry_code(name: str) -> None:
    module = modules()[name]
    allowed = {"runpy"} if module.name in MAY_RUN_PROGRAMS else set()
    assert not {imported.module.split(".")[0] for imported in imports(module)} & CARRIES_CODE - allowed
    for called, options in calls(module):
        assert called not in ("eval", "exec")
        assert options.get("allow_pickle", "False") == "False"


def test_only_training_loads_checkpoints_and_none_with_code() -> None:
    loads = [
        (name, options.get("weights_only"))
        for name, module in modules().items()
        for called, options in calls(module)
        if called in ("torch.load", "load_object")
    ]
    assert sorted(loads) == [(name, "True") for name in MAY_LOAD_CHECKPOINTS]
