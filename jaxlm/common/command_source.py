"""A command, "module:function", as its source tells it: what its help and its mistakes need, before it is imported."""

import ast
import importlib
import importlib.util
from importlib.abc import InspectLoader


def read_command(target: str) -> tuple[type, str | None]:
    """Return the settings class of a command, by the annotation of its one parameter, and its docstring.

    Only the module that defines the class is imported: the frameworks that a command works with take seconds.
    """
    module, _, name = target.partition(":")
    tree = ast.parse(_source(module))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    (parameter,) = function.args.args
    assert isinstance(parameter.annotation, ast.Name), f"{target}: its parameter has no class as annotation"
    home, class_name = _home(tree, parameter.annotation.id) or (module, parameter.annotation.id)
    return getattr(importlib.import_module(home), class_name), ast.get_docstring(function)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    source = spec.loader.get_source(module) if isinstance(spec.loader, InspectLoader) else None
    assert source is not None, f"{module}: has no source"
    return source


def _home(tree: ast.Module, name: str) -> tuple[str, str] | None:
    """Return the module that a file imports a name from, and its name there; None for a name of its own."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return node.module, alias.name
    return None
