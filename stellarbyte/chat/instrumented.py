"""Changes a template's syntax tree, so that the sandbox sees its loops and makes its texts and lists."""

# ruff: noqa: D102 - visit_X is called for each node X

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class Instrumented(NodeTransformer):
    """Puts marks into loops, and calls the sandbox where Jinja would make texts and lists by itself."""

    def __init__(self) -> None:
        self._loops = 0

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:
        self.generic_visit(node)
        self._loops += 1
        loop = nodes.Const(self._loops)
        item = nodes.Name(node.target.name, "load") if isinstance(node.target, nodes.Name) else nodes.Const(None)
        node.body.insert(0, nodes.Output([_call("entered", loop, item)]))
        return [node, nodes.Output([_call("left", loop)])]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", nodes.List(node.nodes))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _call("made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if constant or node.ctx != "load" else _call("made", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("made", node) if node.items else node


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
