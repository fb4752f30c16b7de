"""No two modules of a package import each other, directly or through others."""

from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.repository.test_layering import PACKAGES, files_of, imports_of_file, module_of


def cycle_in(imports: Mapping[str, Set[str]]) -> list[str]:
    """The modules of one import cycle, the first one also at the end; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def test_a_cycle_is_found_wherever_it_is() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert {*cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}})} == {"b", "c"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_form_no_cycle(package: str) -> None:
    """Imports inside functions count as well; none that defers a heavy module needs an exception. The implicit import
    of a module's package does not count."""
    modules = {module_of(file): file for file in files_of(package)}
    imports = {module: (imports_of_file(file) & {*modules}) - {module} for module, file in modules.items()}
    assert any(imports.values())
    assert cycle_in(imports) == []
