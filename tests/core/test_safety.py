"""No module executes what a file holds."""

import ast
from pathlib import Path

import histocodec

REPOSITORY = Path(histocodec.__file__).parents[1]
CARRIES_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}


def test_no_module_reads_what_can_carry_code() -> None:
    """Nothing is unpickled or executed. torch.load is for the checkpoints of training alone, and without code."""
    loads = []
    folders = [REPOSITORY / name for name in ("histocodec", "formats", "cli", "benchmarks")]
    for file in {file for folder in folders for file in folder.rglob("*.py")}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & CARRIES_CODE, file
            if isinstance(node, ast.Call):
                called, options = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert called not in ("eval", "exec"), file
                assert options.get("allow_pickle", "False") == "False", file
                if called in ("torch.load", "load_object"):
                    loads.append((file.relative_to(REPOSITORY).as_posix(), options.get("weights_only")))
    assert sorted(loads) == [("histocodec/train/loop.py", "True"), ("histocodec/train/vae/loop.py", "True")]
