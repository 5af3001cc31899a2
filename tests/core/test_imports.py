"""Imports point down: the order of floors, no circles, and torch only where tensors are."""

from collections.abc import Iterator

import pytest

from tests.support.modules import Import, Module, imports, modules

# From bottom to top. A module imports from its own floor and from those below, in functions and for types too.
FLOORS = (
    ("errors", "version", "extras", "text", "forks", "strict_json"),
    ("geometry",),
    ("slide",),
    ("threads", "device", "kernels", "entropy"),
    ("tissue", "normalise", "fidelity", "picture", "report"),
    ("sources",),
    ("models", "weights"),
    ("codec",),
    ("search",),
    ("train",),
    ("formats", "formats.container"),
    ("formats.decode",),
    ("formats.clients", "formats.export"),
    ("formats.encode",),
    ("formats.embed", "formats.seal"),
    ("formats.cohort",),
    ("benchmarks.peers",),
    ("benchmarks.measure",),
    ("benchmarks.studies",),
    ("benchmarks.compare",),
    ("benchmarks",),
    ("cli",),
    ("histocodec", "__main__", "patched"),  # the façade
)

# The modules that may import torch when they are imported themselves. All others import it in a function, if at all.
MAY_IMPORT_TORCH = (
    "kernels.onednn",
    "kernels.stream",
    "models.export",
    "models.gains",
    "models.hyper",
    "models.prior.training",
    "models.transforms.analysis",
    "models.transforms.exact",
    "models.transforms.fast",
    "models.transforms.network",
    "models.transforms.pullback",
    "models.transforms.training",
    "models.vae",
    "codec.gpu",
    "codec.hyper_latent_search",
    "codec.latent_search",
    "codec.networks",
    "codec.quantise",
    "codec.transform",
    "train",
    "formats.decode.fidelity",
    "formats.decode.gpu",
    "formats.encode",
    "formats.embed",
    "benchmarks",
)

# What has to be importable where no torch is: the facts of a slide, its latents, search, and every command's --help.
WITHOUT_TORCH = (
    "histocodec",
    "errors",
    "geometry",
    "slide",
    "sources",
    "entropy",
    "search",
    "models.weights",
    "models.prior.fast",
    "models.transforms.native",
    "codec.chunk",
    "codec.native",
    "device",
    "formats.container",
    "formats.decode.describe",
    "formats.decode.open",
    "formats.decode.pixels",
    "formats.decode.slide",
    "cli",
)


def short(name: str) -> str:
    """A module's name without the package's, unless it is the package."""
    return name.removeprefix("histocodec.")


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module is one of these or inside one of these packages. The façade has nothing inside."""
    return any(short(name) == prefix or short(name).startswith(f"{prefix}.") for prefix in prefixes)


def floor(name: str) -> int:
    """The number of a module's floor: that of the longest name in FLOORS which it is within."""
    matches = [
        (len(prefix), number)
        for number, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if within(name, (prefix,))
    ]
    assert matches, f"{name} has no floor: add it to FLOORS in {__file__}"
    return max(matches)[1]


def inner_imports() -> Iterator[tuple[Module, Import]]:
    """Every import of a module of the project by another."""
    for module in modules().values():
        for imported in imports(module):
            if imported.module in modules():
                yield module, imported


def described(module: Module, imported: Import) -> str:
    """`cli/main.py:15 imports histocodec.errors`"""
    return f"{module.place}:{imported.line} imports {imported.module}"


def test_no_import_points_up() -> None:
    wrong = [
        f"{described(module, imported)}, which is above it"
        for module, imported in inner_imports()
        if floor(imported.module) > floor(module.name) and imported.module != "histocodec"
    ]
    assert not wrong, "\n".join(wrong)


def test_every_floor_has_a_module() -> None:
    gone = [
        prefix for prefixes in FLOORS for prefix in prefixes if not any(within(name, (prefix,)) for name in modules())
    ]
    assert not gone


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, list[str]] = {name: [] for name in modules()}
    for module, imported in inner_imports():
        graph[module.name].append(imported.module)
    assert not circle(graph), " → ".join(circle(graph))


def circle(graph: dict[str, list[str]]) -> list[str]:
    """One circle of a graph, from a node back to it; empty where there is none."""
    finished: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for target in graph[name]:
            if found := search(target, [*path, name]):
                return found
        finished.add(name)
        return []

    return next((found for name in graph if (found := search(name, []))), [])


def test_a_circle_is_found_wherever_it_begins() -> None:
    assert circle({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == ["b", "d", "b"]
    assert circle({"a": ["a"]}) == ["a", "a"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_only_the_command_bench_imports_benchmarks() -> None:
    wrong = [
        described(module, imported)
        for module, imported in inner_imports()
        if within(imported.module, ("benchmarks",))
        and not within(module.name, ("benchmarks",))
        and module.name != "histocodec.cli.bench"
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_inside_imports_the_facade() -> None:
    wrong = [described(module, imported) for module, imported in inner_imports() if imported.module == "histocodec"]
    assert not wrong, "\n".join(wrong)


def test_torch_is_imported_at_once_only_where_tensors_are() -> None:
    wrong = [
        described(module, imported)
        for module in modules().values()
        for imported in imports(module)
        if imported.at_once and imported.module.split(".")[0] == "torch" and not within(module.name, MAY_IMPORT_TORCH)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_public_modules_of_zarr_are_imported_at_once() -> None:
    """Those of `zarr.core` move from one release to the next."""
    wrong = [
        described(module, imported)
        for module in modules().values()
        for imported in imports(module)
        if imported.at_once and imported.module.startswith("zarr.core")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("prefix", WITHOUT_TORCH)
def test_importing_what_needs_no_tensors_imports_no_torch(prefix: str) -> None:
    starts = [name for name in modules() if within(name, (prefix,))]
    assert starts
    for start in starts:
        chain = way_to_torch(start)
        assert not chain, " → ".join(chain)


def way_to_torch(start: str) -> list[str]:
    """The chain of imports by which importing a module imports torch; empty where none does."""
    ways = {start: [start]}
    pending = [start]
    while pending:
        name = pending.pop()
        packages = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        for target in [*packages, *(found.module for found in imports(modules()[name]) if found.at_once)]:
            if target.split(".")[0] == "torch":
                return [*ways[name], target]
            if target in modules() and target not in ways:
                ways[target] = [*ways[name], target]
                pending.append(target)
    return []
