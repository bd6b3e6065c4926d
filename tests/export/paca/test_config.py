"""The table of variants: what is published, told by names, sizes, tensor counts, parameters and
multiply-accumulates."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from export.paca import VARIANTS, PaCaConfig, PaCaViT, StageConfig, variant
from export.paca.cost import macs, parameters
from export.paca.recognise import recognise

# name: (tensors in a checkpoint, parameters in millions, GMACs at 224, owners of a clustering, blocks).
# Parameters and MACs agree with the
# paper's tables 1, 4 and 5 (12.2 M / 3.2 G, 22.0 M / 5.5 G, 46.9 M / 9.5 G for tiny, small, base); tensors
# with upstream's code.
PUBLISHED = {
    "pacavit_tiny_p2cconv_100_0": (239, 12.201, 3.22, 3, 10),
    "pacavit_small_p2cconv_100_0": (417, 22.038, 5.50, 3, 19),
    "pacavit_base_p2cconv_100_0": (577, 46.911, 9.54, 3, 27),
    "pacavit_small_p2cmlp_100_0": (414, 22.637, 5.86, 3, 19),
    "pacavit_small_p2cconv_2_0": (417, 21.978, 4.64, 3, 19),
    "pacavit_small_p2cconv_49_0": (417, 22.007, 5.05, 3, 19),
    "pacavit_small_p2cconv_49_100": (428, 22.228, 5.27, 4, 19),
    "pacavit_small_p2cconv_100_49": (428, 22.211, 5.34, 4, 19),
    "pacavit_small_p2cconv_100": (428, 22.245, 5.57, 4, 19),
    "pacavit_small_p2cconv_100_blockwise": (503, 24.192, 6.10, 19, 19),
    "pacavit_convmixer_tiny_100": (395, 12.484, 3.42, 4, 8),
    "pacavit_convmixer_small_100": (555, 21.075, 5.48, 4, 16),
    "pacavit_convmixer_base_100": (763, 47.659, 9.77, 4, 25),
}


def skeleton(config: PaCaConfig) -> PaCaViT:
    """The network without numbers."""
    with torch.device("meta"):
        return PaCaViT(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_variant_has_the_published_tensors_parameters_and_cost(name: str) -> None:
    tensors, millions, gmacs, clusterings, blocks = PUBLISHED[name]
    config = VARIANTS[name]
    model = skeleton(config)
    assert len(model.state_dict()) == tensors
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert macs(config) / 1e9 == pytest.approx(gmacs, abs=6e-3)
    assert (config.clusterings, config.blocks) == (clusterings, blocks)


def test_all_thirteen_are_there_under_their_published_names() -> None:
    assert len(PUBLISHED) == 13
    assert [name for name in VARIANTS if name.startswith("pacavit_")] == list(PUBLISHED)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognised_from_its_shapes(name: str) -> None:
    model = skeleton(variant(name, num_classes=17))
    config, notes = recognise({key: tuple(value.shape) for key, value in model.state_dict().items()})
    assert config == variant(name, num_classes=17)
    assert name in notes[0]


MIXTURES = {
    "linear, mlp and none": PaCaConfig(
        "custom",
        (StageConfig(8, 1, 2, 5, "linear"), StageConfig(12, 2, 4, 3, "mlp", 1), StageConfig(16, 1, 8)),
        num_classes=3,
        patch_size=2,
    ),
    "every second block, one stage": PaCaConfig(
        "custom", (StageConfig(8, 5, 2, 4, "conv", 2),), num_classes=3, patch_size=8, in_channels=1
    ),
    "teacher for two of three stages": PaCaConfig(
        "custom",
        (StageConfig(8, 1, 2, 5, "teacher"), StageConfig(12, 1, 4), StageConfig(16, 2, 8, 3, "teacher")),
        num_classes=3,
        teacher_depths=(1, 2, 1),
    ),
    "normed stem, wide MLP": PaCaConfig(
        "custom",
        (StageConfig(8, 1, 2, 5, mlp_ratio=8.0), StageConfig(16, 1, 4)),
        num_classes=3,
        stem="conv_norm",
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_any_mixture_runs_and_is_recognised_from_its_shapes(name: str) -> None:
    config = MIXTURES[name]
    model = PaCaViT(config).eval()
    found, notes = recognise({key: tuple(value.shape) for key, value in model.state_dict().items()})
    assert found == config
    assert "no published variant" in notes[0]
    features = model.features(torch.zeros(1, config.in_channels, 64, 40))
    assert [z.shape[1] if z is not None else 0 for z in features.assignments] == [
        stage.clusters for stage in config.stages
    ]
    assert tuple(features.grids) == config.grids((64, 40))


def test_a_config_survives_json() -> None:
    for config in VARIANTS.values():
        assert PaCaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'pacavit_tiny_p2cconv_100_0'"):
        variant("pacavit_tiny_p2cconv_100")


def test_building_a_variant_leaves_the_table_as_it_was() -> None:
    before = {name: dataclasses.asdict(config) for name, config in VARIANTS.items()}
    for _ in range(2):
        skeleton(VARIANTS["pacavit_convmixer_tiny_100"])
    assert {name: dataclasses.asdict(config) for name, config in VARIANTS.items()} == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stages": ()}, "at least one stage"),
        ({"patch_size": 3}, "power of two"),
        ({"stem": "fancy"}, "stem must be"),
        ({"teacher_depths": (1,)}, "one number a stage"),
        ({"stages": (StageConfig(8, 1, 2, 4, "teacher"),)}, "needs teacher_depths"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_with_the_reason(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PaCaConfig(**({"name": "x", "stages": (StageConfig(8, 1, 2), StageConfig(8, 1, 2))} | changes))


@pytest.mark.parametrize(
    ("values", "reason"),
    [((10, 1, 4), "not a multiple of heads"), ((8, 0, 2), "must be positive"), ((8, 1, 2, -1), ">= 0")],
)
def test_a_stage_that_cannot_be_built_is_refused_with_the_reason(values: tuple, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StageConfig(*values)


def test_who_competes_for_what_is_checked_when_a_config_is_made() -> None:
    competing = StageConfig(8, 1, 2, 4, normalise="clusters")
    last = dataclasses.replace(competing, source="previous")
    for stages, pool in (
        ((last,), "mean"),
        ((StageConfig(8, 1, 2, 3), last), "mean"),
        ((competing, last), "sum"),
    ):
        with pytest.raises(ValueError, match=r"previous|pool"):
            PaCaConfig("odd", stages, pool=pool)
    with pytest.raises(ValueError, match="needs a last stage whose clusters compete"):
        PaCaConfig("odd", (competing, StageConfig(8, 1, 2)), pool="cluster")
    with pytest.raises(ValueError, match="only learned clusters can compete"):
        StageConfig(8, 1, 2, 4, "kmeans", normalise="clusters")
    with pytest.raises(ValueError, match="normalise must be"):
        StageConfig(8, 1, 2, 4, normalise="rows")
    with pytest.raises(ValueError, match="can only be read where clusters compete"):
        StageConfig(8, 1, 2, 4, source="previous")


def test_the_clusters_that_the_last_stage_reads_are_shown_on_the_grid_they_live_on() -> None:
    config = variant("paca_compete_128")
    assert config.shown == {1: 1, 2: 3}
    assert config.clusterings == 3
    assert variant("paca_small_128").shown == {1: 1, 2: 2}


def test_the_competing_network_costs_no_more_than_the_one_before() -> None:
    new, old = variant("paca_compete_128"), variant("paca_small_128")
    assert parameters(PaCaViT(new)) <= 1.1 * parameters(PaCaViT(old))
    assert macs(new) <= macs(old)
