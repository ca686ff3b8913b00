from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

import stereo
from stereo.checkpoints import files
from stereo.errors import CheckpointError, SpecError
from stereo.nets.stereo_network import Leaner
from stereo.registry import MODELS, entry_for, load_weights, settled
from stereo.spec import models
from stereo.spec.experiment import ExperimentSpec, FoundationStereoExperiment
from stereo.spec.networks import FoundationStereoSpec, ModelType

PACKAGE = Path(stereo.__file__).parent
NAMES = {*MODELS, *get_args(ModelType), "mono_metric", "mono_relative"}


def compared_names(source: str) -> list[str]:
    """Model names that a comparison or a `match` of a module mentions, with their lines."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.match_case):
            texts = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
            found += [f"{n.lineno}: {n.value}" for n in texts if n.value in NAMES]
    return found


def test_no_module_but_the_registry_and_the_spec_compares_model_names() -> None:
    """`spec` names models in tables and messages; what a network does is a row of the registry."""
    found = {
        str(path.relative_to(PACKAGE)): compared_names(path.read_text("utf-8"))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("spec", "registry.py")
    }
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_a_comparison_with_a_model_name_is_found() -> None:
    assert compared_names('if spec.model.model_type == "FastFoundationStereo":\n  pass') != []
    assert compared_names('if key in ("ffs", "x"):\n  pass') != []
    assert compared_names('match key:\n  case "ffs":\n    pass') != []
    assert compared_names('message = "ffs"') == []


@pytest.mark.parametrize("key", list(MODELS))
def test_a_row_belongs_to_the_spec_it_is_found_by(key: str) -> None:
    entry = MODELS[key]
    spec = models.MODELS[key].spec_class()
    assert entry_for(spec) is entry
    assert entry.key == key
    assert entry.model_type == models.MODELS[key].model_type == spec.model.model_type
    assert type(spec.model) is entry.spec_class
    assert entry.release_faults(spec) == [], "the defaults are those of the release"


@pytest.mark.parametrize("key", ["ffs", "fs"])
def test_activation_checkpointing_reaches_the_network(key: str) -> None:
    spec = models.MODELS[key].spec_class()
    spec.train.activation_checkpoint = True

    with torch.device("meta"):
        network = MODELS[key].build(spec)

    assert network.low_memory == Leaner.STEPS


def test_every_model_of_the_spec_can_be_built() -> None:
    assert MODELS.keys() == models.MODELS.keys()


# -- weights that decide ---------------------------------------------------------------------------


def foundation_stereo(**fields: object) -> FoundationStereoExperiment:
    thin = {"volume_dim": 16, "corr_levels": 1, "corr_radius": 2, "max_disparity": 32}
    return FoundationStereoExperiment(model=FoundationStereoSpec(**{**thin, **fields}))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights of the public network, under public names."""
    network = MODELS["fs"].build(foundation_stereo(variant="public"))
    path = tmp_path_factory.mktemp("public") / "public.pth"
    files.write(path, {"model": _released_names(network.state_dict())})
    return path


def test_open_choices_follow_the_weights(public: Path) -> None:
    spec = settled(foundation_stereo(variant="auto"), public)
    assert (spec.model.variant, spec.model.attention_layout) == ("public", "groups")
    entry = entry_for(spec)
    assert load_weights(entry.build(spec), public, entry, spec).complete

    chosen = settled(foundation_stereo(variant="auto", attention_layout="mha"), public)
    assert chosen.model.attention_layout == "mha"


def test_the_arrangement_of_heads_is_the_one_that_a_run_of_ours_trained(
    public: Path, tmp_path: Path
) -> None:
    payload = {**files.read(public), "spec": {"model": {"attention_layout": "mha"}}}
    files.write(tmp_path / "trained.pth", payload)
    model = settled(foundation_stereo(variant="public"), tmp_path / "trained.pth").model
    assert model.attention_layout == "mha"


def test_weights_made_for_another_range_load_with_a_warning(
    public: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = settled(foundation_stereo(variant="public"), public)
    entry = entry_for(spec)
    network = entry.build(spec)
    path = tmp_path / "model_best_bp2.pth"
    torch.save({"model": files.read(public)["model"]}, path)
    load_weights(network, path, entry, spec)
    assert f"{path}: made for model.max_disparity 416, the spec has 32" in caplog.messages

    path.with_name("cfg.yaml").write_text("max_disp: 32")
    caplog.clear()
    load_weights(network, path, entry, spec)
    assert not caplog.messages


def test_weights_of_the_other_variant_are_refused(public: Path) -> None:
    spec = foundation_stereo(variant="tao")
    entry = entry_for(spec)
    with pytest.raises(CheckpointError, match=r"model.variant +tao +public"):
        load_weights(entry.build(spec), public, entry, spec)


def test_without_weights_an_open_variant_is_tao() -> None:
    model = settled(foundation_stereo(variant="auto"), None).model
    assert (model.variant, model.attention_layout) == ("tao", "rows")


def test_weights_may_decide_against_another_field(tmp_path: Path) -> None:
    name = "feature.dino.depth_anything.pretrained.patch_embed.proj.weight"
    files.write(tmp_path / "tao.pth", {"model": {name: torch.zeros(384, 1)}})
    spec = foundation_stereo(variant="auto", attention_layout="mha")
    with pytest.raises(SpecError, match=r"attention_layout: got mha, variant tao has auto, rows"):
        settled(spec, tmp_path / "tao.pth")


def test_a_spec_without_open_choices_stays_as_it_is(tmp_path: Path) -> None:
    for spec in (ExperimentSpec(), foundation_stereo(variant="tao", attention_layout="rows")):
        assert settled(spec, tmp_path / "not read.pth") == spec
    tao = settled(foundation_stereo(variant="tao"), tmp_path / "not read.pth")
    assert tao.model.attention_layout == "rows", "the only one that this variant has"


# -- released weights of FastFoundationStereo ------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights under released names."""
    network = MODELS["ffs"].build(ExperimentSpec())
    path = tmp_path_factory.mktemp("released") / "released.pth"
    files.write(path, {"model": _released_names(network.state_dict())})
    return path


def _released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = "feature.downsample_layers.0."
    return {name.replace(ours, "feature.stem."): tensor for name, tensor in state.items()}


def test_released_weights_load_under_our_names(released: Path) -> None:
    entry, spec = MODELS["ffs"], ExperimentSpec()
    network = entry.build(spec)
    assert load_weights(network, released, entry, spec).complete
    expected = entry.load_release(files.read(released)["model"])
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_a_spec_that_released_weights_do_not_fit_is_told_field_by_field(released: Path) -> None:
    entry, spec = MODELS["ffs"], ExperimentSpec()
    spec.model.corr_radius = 3
    spec.model.gwc_feature_normalize = False
    with pytest.raises(CheckpointError, match="do not fit this network") as caught:
        load_weights(entry.build(spec), released, entry, spec)
    assert "model.corr_radius: given 3, needed 4" in str(caught.value)
    assert "model.gwc_feature_normalize: given False, needed True" in str(caught.value)


def test_a_difference_that_shapes_cannot_show_is_refused_too(released: Path) -> None:
    entry, spec = MODELS["ffs"], ExperimentSpec()
    spec.model.gwc_feature_normalize = False
    with pytest.raises(SpecError, match="gwc_feature_normalize: given False, needed True"):
        load_weights(entry.build(spec), released, entry, spec)
