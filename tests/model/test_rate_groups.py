"""Graded learning-rate groups: what lands where, and the mistakes that are refused."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.manifest import Freeze, Geometric, Group, Optimizer
from worker.model.backbone import Backbone, build_backbone
from worker.model.rate_groups import Block, Layout, RateGroup, assign


def optimizer(*groups: Group, lr: float = 1e-3) -> Optimizer:
    return Optimizer(lr=lr, weight_decay=1e-5, groups=groups)


def group(*match: str, **settings: Any) -> Group:
    return Group.model_validate({"match": match, **settings})


def layout(names: Sequence[str], *head: str) -> Layout:
    """Names of which each first component is a block."""
    firsts = dict.fromkeys(name.split(".")[0] for name in names if name not in head)
    blocks = [
        Block(first, frozenset(n for n in names if n.split(".")[0] == first and n not in head))
        for first in firsts
    ]
    norms = frozenset(name for name in names if name.endswith(".b"))
    return Layout(dict.fromkeys(names, 1), (*blocks, Block("head", frozenset(head))), norms)


def assigned(backbone: Backbone, *groups: Group) -> tuple[RateGroup, ...]:
    names = list(backbone.layout.sizes)
    found = assign(backbone.layout, optimizer(*groups), 10)
    everywhere = [name for one in found for name in one.parameters]
    assert sorted(everywhere) == sorted(names), "a parameter is in no group or in two"
    return found


@pytest.fixture(scope="module")
def efficientnet() -> Backbone:
    return build_backbone("efficientnet_b0", 2, 0, 224)


def test_efficientnet_multipliers(efficientnet: Backbone) -> None:
    found = assigned(
        efficientnet,
        group("features.1", scale=0.05),
        group("features.2", "features.3", scale=0.1),
        group("classifier"),
        group("*", scale=0.01),
    )
    rates = {name: one.lr for one in found for name in one.parameters}
    for name, rate in rates.items():
        block = name.split(".")[1] if name.startswith("features.") else name
        expected = {"1": 5e-5, "2": 1e-4, "3": 1e-4, "classifier.1.weight": 1e-3}
        expected["classifier.1.bias"] = 1e-3
        assert rate == pytest.approx(expected.get(block, 1e-5)), name
    assert sum(".fc1." in name or ".fc2." in name for name in rates) == 64
    assert {len(one.parameters) for one in found} == {10, 52, 2, 149}


def test_resnet50_exact_rates() -> None:
    found = assigned(
        build_backbone("resnet50", 2, 0, 224),
        group("layer1", lr=1e-6),
        group("layer2", "layer3", lr=1e-5),
        group("layer4", "fc", lr=1e-3),
        group("*", lr=1e-7),
    )
    rates = {"layer1": 1e-6, "layer2": 1e-5, "layer3": 1e-5, "layer4": 1e-3, "fc": 1e-3}
    for one in found:
        for name in one.parameters:
            assert one.lr == rates.get(name.split(".")[0], 1e-7), name


def test_resnet18_features_and_head() -> None:
    found = assigned(
        build_backbone("resnet18", 2, 0, 224), group("head"), group("backbone", scale=0.01)
    )
    assert {one.name: one.parameters for one in found}["head"] == ("fc.weight", "fc.bias")
    assert [one.lr for one in found] == pytest.approx([1e-3, 1e-5])


def test_components_match_whole() -> None:
    names = ["features.1.w", "features.10.w", "block.fc1.w", "fc.w"]
    found = assign(
        layout(names, "fc.w"),
        optimizer(group("features.1"), group("fc", lr=1.0), group("*", lr=2.0)),
        10,
    )
    assert [one.parameters for one in found] == [
        ("features.1.w",),
        ("fc.w",),
        ("features.10.w", "block.fc1.w"),
    ]


def test_globs_and_equal_settings_are_merged() -> None:
    names = ["layer1.w", "layer2.w", "layer3.w", "fc.w"]
    found = assign(
        layout(names, "fc.w"),
        optimizer(group("layer[12]", scale=0.1), group("layer3", lr=1e-4), group("*")),
        10,
    )
    assert [one.parameters for one in found] == [("layer1.w", "layer2.w", "layer3.w"), ("fc.w",)]
    assert found[0].name == "layer[12]+layer3"


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        (
            [group("features.11"), group("*")],
            r"groups\[0\].match: 'features.11' matches no.*ures.1",
        ),
        ([group("fc"), group("*")], r"'fc' matches no parameter"),
        (
            [group("*"), group("head")],
            r"groups\[1\].match: earlier groups take all that 'head' matches",
        ),
        ([group("head")], r"211 parameters are in no group .*match: \"\*\""),
        ([group("*", freeze=Freeze(epochs=1))], r"all of them are frozen at first"),
        ([group("*", freeze="always")], r"all of them are frozen at first"),
    ],
)
def test_mistakes_are_named(efficientnet: Backbone, groups: list[Group], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        assigned(efficientnet, *groups)


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "fc", "fc1", "1", "10"]), min_size=1, max_size=4).map(
        ".".join
    ),
    min_size=1,
    unique=True,
)


@given(NAMES, st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4))
def test_every_parameter_is_in_exactly_one_group(names: list[str], rates: list[float]) -> None:
    groups = [group(name, lr=rate) for name, rate in zip(names, rates, strict=False)]
    try:
        found = assign(layout(names, names[0]), optimizer(*groups, group("*", lr=2.0)), 10)
    except ConfigurationError:  # a drawn pattern can be shadowed by one before it
        return
    assert sorted(name for one in found for name in one.parameters) == sorted(names)
    assert len({(one.lr, one.weight_decay) for one in found}) == len(found)


DEEP = ["stem.w", "stem.b", "one.w", "one.b", "two.w", "two.b", "fc.w", "fc.b"]


def by_name(groups: Sequence[RateGroup]) -> dict[str, RateGroup]:
    return {name: one for one in groups for name in one.parameters}


def test_layer_decay_goes_by_distance_from_the_head() -> None:
    deep = layout(DEEP, "fc.w", "fc.b")
    whole = by_name(assign(deep, optimizer(group("*", layer_decay=0.5)), 10))
    assert [whole[f"{block}.w"].lr for block in ("stem", "one", "two", "fc")] == pytest.approx(
        [1.25e-4, 2.5e-4, 5e-4, 1e-3]
    )
    assert whole["one.b"].name == "one"
    parts = by_name(
        assign(deep, optimizer(group("head"), group("*", scale=0.1, layer_decay=0.5)), 10)
    )
    assert [parts[f"{block}.w"].lr for block in ("stem", "one", "two", "fc")] == pytest.approx(
        [1.25e-5, 2.5e-5, 5e-5, 1e-3]
    )


def test_geometric_rates_go_from_first_to_last_block() -> None:
    deep = layout(DEEP, "fc.w", "fc.b")
    rates = Geometric.model_validate({"from": 1e-6, "to": 1e-4})
    found = by_name(assign(deep, optimizer(group("head"), group("*", geometric=rates)), 10))
    assert [found[f"{block}.w"].lr for block in ("stem", "one", "two", "fc")] == pytest.approx(
        [1e-6, 1e-5, 1e-4, 1e-3]
    )


@pytest.mark.parametrize(
    ("freeze", "releases"),
    [
        ({"epochs": 1}, [10, 10, 10, 0]),
        ({"steps": 7}, [7, 7, 7, 0]),
        ({"epochs": 1, "block_every": 0.5}, [20, 15, 10, 0]),
        ({"steps": 4, "block_every": 2}, [8, 6, 4, 0]),
        ("always", [None, None, None, 0]),
    ],
)
def test_release_goes_from_the_head_down(freeze: Any, releases: list[int | None]) -> None:
    until = freeze if isinstance(freeze, str) else Freeze.model_validate(freeze)
    found = by_name(
        assign(
            layout(DEEP, "fc.w", "fc.b"),
            optimizer(group("head"), group("backbone", freeze=until)),
            steps_per_epoch=10,
        )
    )
    assert [found[f"{block}.w"].release for block in ("stem", "one", "two", "fc")] == releases


def test_undecayed_can_be_kept_out_of_weight_decay() -> None:
    settings = optimizer(group("head", weight_decay=0.1), group("*", scale=0.1))
    settings = settings.model_copy(update={"decay_norms_and_biases": False})
    found = assign(layout(DEEP, "fc.w", "fc.b"), settings, 10)
    decays = {name: one.weight_decay for name, one in by_name(found).items()}
    assert decays["fc.w"] == 0.1
    assert {decays[name] for name in DEEP if name.endswith(".b")} == {0.0}
    assert {decays[name] for name in DEEP if name.endswith(".w")} == {0.1, 1e-5}
    assert [one.name for one in found] == ["head", "head without decay", "*", "* without decay"]


def test_different_settings_never_share_a_name() -> None:
    found = assign(
        layout(DEEP, "fc.w", "fc.b"),
        optimizer(group("stem.w", lr=1.0), group("stem", "one", layer_decay=0.5), group("*")),
        10,
    )
    names = [one.name for one in found]
    assert len(set(names)) == len(names)
    assert "stem+one:stem" in names


@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([None, 0.7]),
    st.booleans(),
)
def test_deeper_blocks_are_never_slower_nor_later(
    blocks: int, steps: int, every: int | None, decay: float | None, all_decayed: bool
) -> None:
    names = [f"{number}.{kind}" for number in range(blocks) for kind in "wb"] + ["fc.w"]
    until = Freeze(steps=steps, block_every=every)
    settings = optimizer(group("head"), group("*", freeze=until, layer_decay=decay))
    settings = settings.model_copy(update={"decay_norms_and_biases": all_decayed})
    found = by_name(assign(layout(names, "fc.w"), settings, 10))
    assert sorted(found) == sorted(names)
    ordered = [found[f"{number}.w"] for number in range(blocks)]
    assert [one.lr for one in ordered] == sorted(one.lr for one in ordered)
    releases = [one.release or 0 for one in ordered]
    assert releases == sorted(releases, reverse=True)
    assert releases[-1] == steps
