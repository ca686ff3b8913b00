"""The kit runner itself: kits made here from our own network pass, and damaged ones fail."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stereo.losses import sequence_loss
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.spec.networks import FastFoundationStereoSpec
from tests.golden.fill import checksum, fill_state_dict
from tests.parity.kit import main, open_kit
from tests.parity.stereo_kit import MEAN, STD, StereoKit, capture_stages

SPEC = FastFoundationStereoSpec(
    encoder="vits",
    volume_dim=16,
    cv_group=4,
    concat_channel=8,
    corr_levels=1,
    corr_radius=3,
    gwc_feature_normalize=False,
    max_disparity=32,
    hidden_dims=[32],
    motion_encoder_final=None,
    gru_hidden=None,
    gru_gating_conv_widths=None,
    disp_head_intermediate=None,
    disp_head_pwconv1_widths=None,
    cnet_conv04_widths=None,
    cam_mid_channels=None,
)
ITERS, MAX_DISPARITY, STRIDE = 2, 24, 2
SCALE = 1.05


def normalised(image: np.ndarray) -> torch.Tensor:
    scaled = (image / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).float()


def write_kit(folder: Path, *, batch: int = 2, scaled: str | None = None) -> Path:
    """Write a kit whose reference is our own network, with one tensor 5 % larger if it is named."""
    network = FastFoundationStereo(SPEC).eval()
    tensors = [
        {"name": name, "shape": list(value.shape), "dtype": str(value.dtype).split(".")[1]}
        for name, value in network.state_dict().items()
    ]
    filled = fill_state_dict(tensors)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in filled.items()}, strict=False)
    if scaled is not None:
        network.get_parameter(scaled).detach().mul_(SCALE)
    header = {"model": asdict(SPEC), "fill_checksum": checksum(filled)}
    prefix = folder / "small"
    manifest = json.dumps({"header": header, "tensors": tensors})
    prefix.with_name("small.manifest.json").write_text(manifest)
    generator = np.random.default_rng(0)
    left, right = generator.integers(0, 256, (2, batch, 32, 64, 3), dtype=np.uint8)
    values: dict[str, Any] = {"left": left, "right": right}
    values |= inference_values(network, normalised(left), normalised(right))
    values |= training_values(network, normalised(left), normalised(right))
    np.savez(prefix.with_name("small.npz"), **values)
    return prefix


def inference_values(
    network: FastFoundationStereo, left: torch.Tensor, right: torch.Tensor
) -> dict[str, Any]:
    stages = capture_stages(network, SPEC, left, right)
    values: dict[str, Any] = {"stage_order": np.array(list(stages))}
    for name, stage in stages.items():
        flat = stage.flatten().numpy()
        index = np.linspace(0, flat.size - 1, min(256, flat.size)).astype(np.int64)
        values[f"stage/{name}/shape"] = np.array(stage.shape)
        values[f"stage/{name}/stats"] = np.array([flat.mean(), flat.std(), flat.min(), flat.max()])
        values[f"stage/{name}/slice"] = flat[index]
    with torch.no_grad():
        output = network(left, right, iters=ITERS)
    values["init_disp"] = output.initial.numpy()
    values[f"disp_iters{ITERS}"] = output.refined[-1].numpy()
    return values


def training_values(
    network: FastFoundationStereo, left: torch.Tensor, right: torch.Tensor
) -> dict[str, Any]:
    size = left.shape[-2:]
    truth = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 30
    valid = (truth < MAX_DISPARITY).expand(left.shape[0], 1, *size)
    parameters = dict(network.named_parameters())
    names = ["feature.conv4.weight", "spx_gru.0.weight"]
    values: dict[str, Any] = {
        "gt": truth.numpy(),
        "valid": np.ones(size, np.uint8),
        "train/iters": ITERS,
        "train/max_disparity": MAX_DISPARITY,
        "train/pred_stride": STRIDE,
        "train/grad_names": np.array(names),
        "train/train/bn_name": "cost_agg.conv3.0.norm.running_mean",
    }
    for mode in ("frozen", "train"):
        network.train(mode == "train")
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        output = network(left, right, iters=ITERS)
        loss = sequence_loss(output.initial, output.refined, truth.expand_as(valid), valid)
        network.zero_grad(set_to_none=True)
        loss.total.backward()
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        found = {
            "loss": loss.total.item(),
            "init_loss": loss.initial.item(),
            "epe": loss.last.item(),
            "init_disp": output.initial.detach().numpy(),
            "grad_norms": [parameters[name].grad.norm().item() for name in names],
            "grad_global": torch.stack([g.norm() for g in gradients]).norm().item(),
            "n_params_without_grad": sum(p.numel() for p in parameters.values() if p.grad is None),
        }
        for index, prediction in enumerate(output.refined):
            found[f"pred{index}"] = prediction.detach().numpy()[..., ::STRIDE, ::STRIDE]
        values |= {f"train/{mode}/{key}": value for key, value in found.items()}
    norm = network.cost_agg.conv3[0].norm
    values["train/train/bn_running_mean"] = norm.running_mean.numpy()
    values["train/train/bn_running_var"] = norm.running_var.numpy()
    return values


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kit(tmp_path_factory.mktemp("kit"))


def test_a_kit_of_other_widths_and_batch_passes(
    prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(prefix)]) == 0

    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert "cost_agg#0" in printed
    assert "train grad_global" in printed
    assert "running_var" in printed


@pytest.mark.parametrize(
    "key", ["stage/cost_agg#0/slice", f"disp_iters{ITERS}", "train/train/pred1"]
)
def test_a_number_beyond_its_tolerance_fails(
    prefix: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(prefix.with_name("small.npz")) as stored:
        values = {name: stored[name] for name in stored.files}
    values[key] = values[key] + 0.2 * np.abs(values[key]).max()
    np.savez(tmp_path / "other.npz", **values)

    assert main([str(prefix), "--golden", str(tmp_path / "other.npz")]) == 1

    assert "FAIL" in capsys.readouterr().out


EXTRA = {"name": "more.weight", "shape": [2, 2], "dtype": "float32"}


def signed(kit: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
    """Give a kit other tensors and the checksum that belongs to them."""
    kit["tensors"] = tensors
    kit["header"]["fill_checksum"] = checksum(fill_state_dict(tensors))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda kit: kit["header"].update(fill_checksum="00000000"), "the kit says 00000000"),
        (lambda kit: kit["tensors"].pop(), "checksum"),
        (lambda kit: kit["header"]["model"].update(volume_dim=20), "names and shapes differ"),
        (lambda kit: kit["header"]["model"].update(width=3), r"header.model.width is no field"),
        (lambda kit: signed(kit, kit["tensors"][:-3]), "unexpected spx_gru.0.bias"),
        (lambda kit: signed(kit, [*kit["tensors"], EXTRA]), "missing more.weight"),
    ],
)
def test_a_kit_that_describes_another_network_fails(
    prefix: Path,
    tmp_path: Path,
    damage: Any,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kit = json.loads(prefix.with_name("small.manifest.json").read_text())
    damage(kit)
    (tmp_path / "bad.manifest.json").write_text(json.dumps(kit))

    golden = str(prefix.with_name("small.npz"))
    assert main([str(tmp_path / "bad"), "--golden", golden]) == 1

    assert message in capsys.readouterr().out


def test_a_reference_with_one_tensor_scaled_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled = write_kit(tmp_path, scaled="update_block.gru04.small_gru.convz.weight")
    assert main([str(scaled)]) == 1
    assert "first failure: " in capsys.readouterr().out


ONE_OF_EACH = {
    "feature.stages.1.0.pwconv1.weight",
    "feature.conv4.bias",
    "cost_agg.post8_to_4.upsample.1.sa.0.linear1.weight",
    "update_block.encoder.convc1.weight",
    "spx_gru.0.weight",
}


@pytest.fixture(scope="module")
def kit(prefix: Path) -> StereoKit:
    found = open_kit(prefix)
    assert isinstance(found, StereoKit)
    return found


def scaled_tensor_fails(kit: StereoKit, name: str) -> bool:
    tensor = kit.network.get_parameter(name).detach()
    before = tensor.clone()
    tensor.mul_(SCALE)
    kit.__dict__.pop("_captured_stages", None)
    try:
        return not all(check.ok for check in kit.inference_checks())
    finally:
        tensor.copy_(before)


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_a_scaled_tensor_of_every_kind_is_seen(kit: StereoKit, name: str) -> None:
    assert scaled_tensor_fails(kit, name)


@pytest.mark.slow
def test_every_tensor_that_the_network_reads_is_seen(kit: StereoKit) -> None:
    network = kit.network.eval()
    network.zero_grad(set_to_none=True)
    output = network(kit.left, kit.right, iters=2)
    (output.initial.sum() + output.refined[-1].sum()).backward()
    live = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert len(live) > 300
    unseen = [name for name in live if not scaled_tensor_fails(kit, name)]
    # A bias before a softmax cancels, and 5 % of some others is less than rounding may do.
    assert all(name.endswith(".bias") for name in unseen), unseen
    assert len(unseen) <= 5, unseen


def test_no_kit_is_named_where_kits_are_compared() -> None:
    golden = Path(__file__).parents[1] / "golden"
    kits = {path.name.partition(".")[0] for path in golden.glob("*.manifest.json")}
    assert len(kits) > 5
    for source in ("kit.py", "stereo_kit.py", "mono_kit.py", "networks.py", "checks.py"):
        text = Path(__file__).with_name(source).read_text("utf-8")
        assert [name for name in kits if name in text] == []
