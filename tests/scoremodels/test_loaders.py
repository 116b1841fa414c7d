"""Loading and saving: what comes back is what was saved, and what is damaged or unsafe is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samplers.guidance import ClassifierFreeGuidance
from scoremodels import loaders
from scoremodels.analytic import GaussianModel
from scoremodels.loaders import available, load, model_folder, save
from scoremodels.model import ScoreModel
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMPreconditioned, FlowTime
from scoremodels.schedule import EDM, DiscreteVP, RectifiedFlow


def filled(network: nn.Module) -> nn.Module:
    for index, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return network


def edm_model() -> ScoreModel:
    body = filled(PatchUNet(width=8, width_inner=32, blocks=1, classes=3))
    return ScoreModel(EDMPreconditioned(body, 0.25), EDM(0.01, 50.0, 0.25), "sample", (1, 8, 8), num_classes=3,
                      value_range=(0.0, 1.0))


def flow_model() -> ScoreModel:
    body = filled(PatchUNet(width=8, width_inner=32, blocks=1))
    return ScoreModel(FlowTime(body), RectifiedFlow(), "flow", (1, 8, 8))


def unet(**options: object) -> diffusers.UNet2DModel:
    return filled(diffusers.UNet2DModel(**(dict(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D")) | options)))


def pipeline(folder: Path, network: nn.Module | None = None, scheduler: object = None, **options: object) -> nn.Module:
    network = unet() if network is None else network
    diffusers.DDPMPipeline(network, scheduler or diffusers.DDPMScheduler()).save_pretrained(folder, **options)
    return network


def states(seed: int = 0) -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [edm_model, flow_model])
def test_a_saved_model_comes_back_equal(make: Callable[[], ScoreModel], tmp_path: Path) -> None:
    model = make()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert (again.schedule, again.prediction, again.shape) == (model.schedule, model.prediction, model.shape)
    assert (again.num_classes, again.value_range) == (model.num_classes, model.value_range)
    for (name, mine), (other, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(mine, theirs)
    torch.testing.assert_close(again(states(), 0.5), model(states(), 0.5))


def test_a_diffusers_network_can_be_saved_as_ours(tmp_path: Path) -> None:
    pipeline(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    save(model, tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.schedule == model.schedule and torch.equal(again(states(), 5.0), model(states(), 5.0))


def test_a_loaded_model_is_ready_for_inference(tmp_path: Path) -> None:
    save(edm_model(), tmp_path)
    model = load(tmp_path)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.network.body.down.weight.is_contiguous(memory_format=torch.channels_last)


def test_embedded_models_are_listed_and_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_PRETRAINED", tmp_path)
    save(edm_model(), tmp_path / "zebra-edm")
    pipeline(tmp_path / "ape-ddpm")
    (tmp_path / "empty").mkdir()
    assert available() == ("ape-ddpm", "zebra-edm")
    assert load("zebra-edm").name == "zebra-edm" and load("ape-ddpm").name == "ape-ddpm"


def test_plain_diffusers_loads_the_folder_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_PRETRAINED", tmp_path)
    network = pipeline(tmp_path / "ape-ddpm")
    again = diffusers.DDPMPipeline.from_pretrained(model_folder("ape-ddpm")).unet
    assert torch.equal(again(states(), 5).sample, network(states(), 5).sample)


def test_nothing_is_available_without_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_PRETRAINED", tmp_path / "none")
    assert available() == ()


def test_a_pipeline_folder_gives_its_network_and_schedule(tmp_path: Path) -> None:
    network = pipeline(tmp_path)
    model = load(tmp_path)
    assert (model.schedule, model.prediction, model.shape) == (DiscreteVP.linear(), "epsilon", (1, 8, 8))
    expected = network(states(), torch.tensor([7.0, 7.0])).sample
    torch.testing.assert_close(model(states(), 7.0), expected, rtol=1e-5, atol=1e-5)


def test_a_class_conditional_pipeline_takes_labels(tmp_path: Path) -> None:
    network = pipeline(tmp_path, unet(num_class_embeds=5))
    model = load(tmp_path)
    labels = torch.tensor([4, 1])
    expected = network(states(), 7, class_labels=labels).sample
    torch.testing.assert_close(model(states(), 7.0, labels), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no label"):
        model(states(), 7.0)


@pytest.mark.parametrize("beside", [True, False])
def test_a_bare_network_takes_the_scheduler_in_its_folder(tmp_path: Path, beside: bool) -> None:
    unet().save_pretrained(tmp_path)
    diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(
        tmp_path if beside else tmp_path / "scheduler")
    model = load(tmp_path)
    assert model.prediction == "v_prediction" and model.schedule == DiscreteVP.scaled_linear(1e-4, 0.02)


def test_a_bare_network_without_a_scheduler_is_refused(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scheduler_config.json"):
        load(tmp_path)


def test_a_learned_variance_is_dropped(tmp_path: Path) -> None:
    network = pipeline(tmp_path, unet(out_channels=2))
    torch.testing.assert_close(load(tmp_path)(states(), 7.0), network(states(), 7).sample[:, :1], rtol=1e-5, atol=1e-5)


def test_an_edm_pipeline_is_fed_and_told_what_its_scheduler_would(tmp_path: Path) -> None:
    scheduler = diffusers.EDMEulerScheduler()
    network = pipeline(tmp_path, scheduler=scheduler)
    sigma = torch.tensor(3.0)
    raw = network(scheduler.precondition_inputs(states(), sigma), scheduler.precondition_noise(sigma)).sample
    expected = scheduler.precondition_outputs(states(), raw, sigma)
    torch.testing.assert_close(load(tmp_path).denoise(states(), 3.0), expected, rtol=1e-5, atol=1e-5)


def test_a_pickle_of_tensors_alone_is_read(tmp_path: Path) -> None:
    network = pipeline(tmp_path, safe_serialization=False)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.bin").exists()
    torch.testing.assert_close(load(tmp_path)(states(), 7.0), network(states(), 7).sample, rtol=1e-5, atol=1e-5)


class Code:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple:
        return (print, ("unpickling ran code",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": Code()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="could run any code.*safetensors"):
        load(tmp_path)
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["network.pkl", "model.ckpt", "weights.pt", "pytorch_model.bin"])
def test_a_lone_pickle_is_refused_unread(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="pickle.*safetensors"):
        load(tmp_path / name)
    assert "ran code" not in capsys.readouterr().out


def test_a_folder_with_only_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edm-cifar10-32x32-uncond-vp.pkl").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="edm-cifar10-32x32-uncond-vp.pkl"):
        load(tmp_path)


def damage_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def damage_everything(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_length, damage_header, damage_everything])
@pytest.mark.parametrize("kind", ["ours", "diffusers", "bin"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: Callable[[Path], None], kind: str) -> None:
    if kind == "ours":
        save(edm_model(), tmp_path)
    else:
        pipeline(tmp_path, safe_serialization=kind == "diffusers")
    (weights,) = [p for p in tmp_path.rglob("*model.*") if p.suffix in (".safetensors", ".bin")]
    damage(weights)
    with pytest.raises(ValueError, match="damaged or truncated|no pickle of tensors alone"):
        load(tmp_path)


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    edit(state)
    save_file(state, path)


@pytest.mark.parametrize(("edit", "match"), [
    (lambda s: s.update({"body.stem.bias": torch.zeros(7)}), r"body.stem.bias has shape \(7,\), not \(8,\)"),
    (lambda s: s.pop("body.stem.bias"), "body.stem.bias is missing"),
    (lambda s: s.update(extra=torch.zeros(1)), "extra is not expected"),
    (lambda s: s.update({"body.stem.bias": torch.full((8,), torch.nan)}), "body.stem.bias is not finite"),
])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, edit: Callable, match: str) -> None:
    save(edm_model(), tmp_path)
    change(tmp_path / "model.safetensors", edit)
    with pytest.raises(ValueError, match=match):
        load(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    save(edm_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(("edit", "match"), [
    (lambda c: c.pop("schedule"), "schedule"), (lambda c: c.update(format=99), "format 99"),
    (lambda c: c["network"].update(kind="resnet"), "kind='resnet'"), (lambda c: c.update(shape=[1, "8", 8]), "shape"),
    (lambda c: c["network"]["body"].update(width="wide"), "patch-unet"), (lambda c: c.update(shape=3), "int"),
    (lambda c: c["network"]["body"].update(height=3), "height"), (lambda c: c.update(network=3), "network=3"),
    (lambda c: c["schedule"].update(sigma_min=-1.0), "sigma_min"), (lambda c: c.update(prediction="x"), "prediction"),
])
def test_a_wrong_config_is_refused(tmp_path: Path, edit: Callable, match: str) -> None:
    save(edm_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    edit(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=match):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_json_is_refused(tmp_path: Path, name: str, text: str) -> None:
    pipeline(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=Path(name).name.replace(".", r"\.")):
        load(tmp_path)


def test_a_pipeline_of_other_parts_is_refused(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "scheduler": ["diffusers", "PNDMScheduler"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="StableDiffusionPipeline.*FewStepScheduler"):
        load(tmp_path)


@pytest.mark.parametrize("blocks", [["NoBlock"], ["NoBlock", "NoBlock"], 3])
def test_a_unet_config_that_builds_nothing_is_refused(tmp_path: Path, blocks: object) -> None:
    pipeline(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {"down_block_types": blocks}))
    with pytest.raises(ValueError, match="diffusers-unet"):
        load(tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_PRETRAINED", tmp_path)
    save(edm_model(), tmp_path / "fashion-mnist-edm")
    with pytest.raises(ValueError, match="did you mean 'fashion-mnist-edm'.*there are fashion-mnist-edm.*hub id"):
        load("fashion-mnist-emd")


def test_a_hub_id_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the requested files in the local cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="no folder here.*connection"):
        load("google/ddpm-cifar10-32")


def test_a_hub_id_loads_what_the_hub_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    pipeline(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **_: str(tmp_path))
    assert load("owner/model").name == "owner/model"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither config.json nor model_index.json"):
        load(tmp_path)


def test_a_weight_file_alone_is_refused(tmp_path: Path) -> None:
    save(edm_model(), tmp_path)
    with pytest.raises(ValueError, match="give the folder"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("model", [
    ClassifierFreeGuidance(edm_model(), 2.0), GaussianModel(torch.zeros(2), torch.eye(2), EDM()),
    ScoreModel(nn.Conv2d(1, 1, 1), EDM(), "sample", (1, 8, 8)),
], ids=["guidance", "analytic", "foreign"])
def test_what_a_folder_cannot_describe_is_not_saved(tmp_path: Path, model: ScoreModel) -> None:
    with pytest.raises(ValueError, match="can be saved"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
