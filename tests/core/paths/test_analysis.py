"""Lengths, numbers and sources of paths, against the enumeration of every path; and the meetings of small graphs."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from detloom.paths.analysis import analyse
from detloom.paths.graph import Form, Node, Output, PathGraph, merged, only
from detloom.paths.layout import lay_out
from detloom.paths.meetings import meetings

FORMS: tuple[Form, ...] = ("layer", "addition", "concatenation", "product")


@st.composite
def graphs(draw: st.DrawFn) -> PathGraph:
    nodes = [Node("picture", "picture")]
    for index in range(1, draw(st.integers(2, 9))):
        inputs = draw(st.lists(st.integers(0, index - 1), min_size=1, max_size=3))
        # Few names, so that some layers are used more than once.
        nodes.append(Node(draw(st.sampled_from(FORMS)), f"part.{draw(st.integers(0, 4))}", tuple(inputs), 2))
    ends = draw(st.lists(st.integers(1, len(nodes) - 1), min_size=1, max_size=3))
    graph = PathGraph(tuple(nodes), tuple(Output(f"output {place}", end) for place, end in enumerate(ends)))
    return only(graph, [output.name for output in graph.outputs])


def all_paths(graph: PathGraph, node: int) -> Iterator[list[int]]:
    """Yield every path that begins at a node, and each of its beginnings."""
    yield [node]
    for read in graph.nodes[node].inputs:
        for path in all_paths(graph, read):
            yield [node, *path]


def enumerated(graph: PathGraph) -> dict[tuple[str, str], list[int]]:
    """Return by output and layer the lengths of all paths between them, one by one."""
    lengths: dict[tuple[str, str], list[int]] = {}
    for output in graph.outputs:
        for path in all_paths(graph, output.node):
            last = graph.nodes[path[-1]]
            if last.form == "layer":
                passed = sum(graph.nodes[index].form == "layer" for index in path)
                lengths.setdefault((output.name, last.name), []).append(passed)
    return lengths


def nearest(graph: PathGraph, name: str) -> set[str]:
    """Return the sources of a layer: where a path to it comes from, with no layer between."""
    found = set()
    for output in graph.outputs:
        for path in all_paths(graph, output.node):
            last = graph.nodes[path[-1]]
            if last.form == "layer" and last.name == name:
                before = [graph.nodes[index].name for index in path[:-1] if graph.nodes[index].form == "layer"]
                found.add(before[-1] if before else output.name)
    return found


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_paths_are_those_of_an_enumeration(graph: PathGraph) -> None:
    expected = enumerated(graph)

    found = {
        (output, layer.name): (reach.paths, list(reach.steps))
        for layer in analyse(graph).layers
        for output, reach in layer.by_output.items()
    }

    assert found == {key: (len(lengths), sorted(set(lengths))) for key, lengths in expected.items()}


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_sources_are_those_of_an_enumeration(graph: PathGraph) -> None:
    for layer in analyse(graph).layers:
        assert set(layer.sources) == nearest(graph, layer.name)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_merging_sums_of_sums_changes_no_path(graph: PathGraph) -> None:
    assert enumerated(merged(graph)) == enumerated(graph)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_no_two_nodes_are_drawn_in_one_place_and_flows_go_to_the_right(graph: PathGraph) -> None:
    layout = lay_out(graph)

    places = [*layout.places, *layout.ends]
    assert len(set(places)) == len(places)
    for node, place in zip(graph.nodes, layout.places, strict=True):
        assert all(layout.places[read].column < place.column for read in node.inputs)


def chain(length: int) -> list[Node]:
    """Return the picture and layers ``a.1``, ``a.2`` and so on behind it."""
    return [
        Node("picture", "picture"),
        *(Node("layer", f"a.{place}", (place - 1,), 4) for place in range(1, length + 1)),
    ]


def test_paths_too_many_for_any_enumeration_are_counted_exactly() -> None:
    nodes = chain(1)
    for _ in range(200):
        last = len(nodes) - 1
        nodes += [Node("layer", f"b.{last}", (last,)), Node("addition", "b", (last, last + 1))]

    first = analyse(PathGraph(tuple(nodes), (Output("map", len(nodes) - 1),))).layers[0].total

    assert (first.paths, first.shortest, first.longest) == (2**200, 1, 201)


def test_flow_that_is_added_to_itself_is_two_paths() -> None:
    nodes = (*chain(1), Node("addition", "a", (1, 1)))

    assert analyse(PathGraph(nodes, (Output("map", 2),))).layers[0].total.paths == 2


def test_layer_that_is_used_twice_has_the_paths_of_both_uses() -> None:
    nodes = (*chain(1), Node("layer", "b", (1,)), Node("layer", "b", (2,)))

    layer = analyse(PathGraph(nodes, (Output("map", 3),))).layers[1]

    assert (layer.uses, layer.total.steps, layer.sources) == (2, (1, 2), ("b", "map"))


def test_stages_share_the_sources_that_both_have() -> None:
    # backbone.1 is read by neck.1 and by neck.2, neck.1 by neck.2: neck.2 is a source of both stages.
    nodes = (
        Node("picture", "picture"),
        Node("layer", "backbone.1", (0,), 8),
        Node("layer", "neck.1", (1,), 8),
        Node("concatenation", "neck", (1, 2)),
        Node("layer", "neck.2", (3,), 8),
    )

    stages = analyse(PathGraph(nodes, (Output("map", 4),))).stages

    assert [(stage.name, dict(stage.shared)) for stage in stages] == [
        ("backbone 1/8", {"neck 1/8": 1}),
        ("neck 1/8", {"backbone 1/8": 1}),
    ]


def test_outputs_that_are_left_out_leave_their_layers_unreached() -> None:
    nodes = (*chain(2), Node("layer", "b", (1,)))
    graph = PathGraph(nodes, (Output("one", 2), Output("two", 3)))

    chosen = only(graph, ["two"])

    assert [node.name for _, node in chosen.layers()] == ["a.1", "b"]
    assert chosen.unreached == ("a.2",)


def test_residual_goes_around_the_layers_of_all_its_branches() -> None:
    # a.1 + a.3(a.2(a.1)) + b(a.1)
    nodes = (*chain(3), Node("layer", "b", (1,)), Node("addition", "sum", (1, 3, 4)))

    (meeting,) = meetings(PathGraph(nodes, (Output("map", 5),)))

    assert (meeting.structure, meeting.carried, meeting.around) == ("residual", (0,), (1, 2))
    assert meeting.feeders == (("a.1",), ("a.3",), ("b",))


def test_sum_of_separate_layers_is_no_residual() -> None:
    nodes = (*chain(1), Node("layer", "b", (1,)), Node("layer", "c", (1,)), Node("addition", "sum", (2, 3)))

    (meeting,) = meetings(PathGraph(nodes, (Output("map", 4),)))

    assert (meeting.structure, meeting.carried, meeting.around) == ("sum", (), None)
