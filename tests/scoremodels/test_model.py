"""What a ScoreModel passes to its network, makes of the output, and refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scoremodels.model import ScoreModel
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMInput, EDMPreconditioned, FlowTime
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, RectifiedFlow


class Recorder(nn.Module):
    """Remember the arguments; answer ``weight · x``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls.append((x, t, condition))
        return self.weight * x


def model(prediction: str = "epsilon", **options: object) -> ScoreModel:
    return ScoreModel(Recorder(), DiscreteVP.linear(), prediction, (2, 4), **options)


X = torch.linspace(-1.0, 1.0, 24).reshape(3, 2, 4)


def test_a_float_time_becomes_a_vector() -> None:
    m = model()
    m(X, 12.5)
    assert m.network.calls[0][1].tolist() == [12.5] * 3


def test_a_scalar_tensor_is_a_time_for_all() -> None:
    m = model()
    m(X, torch.tensor(7))
    assert m.network.calls[0][1].tolist() == [7.0] * 3


def test_each_state_may_have_its_own_time() -> None:
    m = model()
    t = torch.tensor([1.0, 2.0, 3.0])
    m(X, t)
    assert m.network.calls[0][1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("network_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("state_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_network_sees_its_own_dtype_and_the_caller_gets_back_theirs(
    network_dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    m = model().to(network_dtype)
    assert m(X.to(state_dtype), 3.0).dtype == state_dtype
    assert m.network.calls[0][0].dtype == network_dtype


@pytest.mark.parametrize("state_dtype", [torch.float16, torch.bfloat16])
def test_half_precision_times_keep_their_digits(state_dtype: torch.dtype) -> None:
    m = model().to(state_dtype)
    m(X.to(state_dtype), 997.25)
    assert m.network.calls[0][1].tolist() == [997.25] * 3


@pytest.mark.parametrize("t", [500.0, torch.tensor([10.0, 500.0, 900.0])])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "score"])
def test_sample_and_noise_make_up_the_state(prediction: str, t: float | Tensor) -> None:
    m = model(prediction).double()
    x = X.double()
    times = torch.as_tensor(t, dtype=torch.float64).expand(3).numpy()
    alpha, sigma = (torch.tensor(f(times.copy()))[:, None, None] for f in (m.schedule.alpha, m.schedule.sigma))
    torch.testing.assert_close(alpha * m.denoise(x, t) + sigma * m.noise(x, t), x, rtol=1e-9, atol=1e-9)


def test_a_prediction_of_the_sample_is_the_sample() -> None:
    m = model("sample")
    assert torch.equal(m.denoise(X, 5.0), m(X, 5.0))


def test_no_condition_reaches_the_network_as_none() -> None:
    m = model(num_classes=3)
    m(X, 1.0)
    assert m.network.calls[0][2] is None


def test_label_num_classes_means_no_label() -> None:
    net = PatchUNet(width=8, width_inner=32, blocks=1, classes=3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    m = ScoreModel(EDMPreconditioned(net), EDM(), "sample", (1, 8, 8), num_classes=3)
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(m(x, 1.0), m(x, 1.0, torch.full((2,), 3)))
    assert not torch.equal(m(x, 1.0), m(x, 1.0, torch.full((2,), 1)))


@pytest.mark.parametrize(("arguments", "match"), [
    ((X[0], 1.0), "x has shape"), ((X[..., :3], 1.0), "x has shape"), ((X.long(), 1.0), "dtype torch.int64"),
    ((X, -2.0), "t=-2.0"), ((X, 1000.0), "t=1000.0"), ((X, math.nan), "t=nan"), ((X, torch.ones(2)), "t has shape"),
    ((X, torch.ones(3, 1)), "t has shape"), ((X, 1.0, torch.tensor([0, 1])), "condition has shape"),
    ((X, 1.0, torch.tensor([0.0, 1.0, 1.0])), "dtype torch.float32"), ((X, 1.0, torch.tensor([0, 1, 4])), "condition="),
    ((X, 1.0, torch.tensor([0, 1, -1])), "condition="),
])
def test_wrong_input_is_refused_before_the_network_runs(arguments: tuple, match: str) -> None:
    m = model(num_classes=3)
    with pytest.raises(ValueError, match=match):
        m(*arguments)
    assert not m.network.calls


def test_labels_for_an_unconditional_model_are_refused() -> None:
    with pytest.raises(ValueError, match="unconditional"):
        model()(X, 1.0, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("condition", [None, torch.tensor([0, 1, 3])])
def test_no_label_is_refused_where_training_never_left_labels_out(condition: Tensor | None) -> None:
    with pytest.raises(ValueError, match="condition="):
        model(num_classes=3, label_dropout=False)(X, 1.0, condition)


@pytest.mark.parametrize(("options", "match"), [
    (dict(prediction="eps"), "prediction='eps'"), (dict(shape=()), "shape"), (dict(shape=(1, 0)), "shape"),
    (dict(num_classes=-1), "num_classes"), (dict(value_range=(1.0, -1.0)), "value_range"),
])
def test_impossible_models_are_refused(options: dict, match: str) -> None:
    arguments = dict(prediction="epsilon", shape=(1, 8, 8)) | options
    with pytest.raises(ValueError, match=match):
        ScoreModel(Recorder(), EDM(), arguments.pop("prediction"), arguments.pop("shape"), **arguments)


def test_edm_preconditioning_is_that_of_the_paper() -> None:
    net = EDMPreconditioned(Recorder(), sigma_data=0.5)
    x, sigma = X.double(), torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    s = sigma[:, None, None]
    out = s * 0.5 / (s**2 + 0.25).sqrt()
    expected = 0.25 / (s**2 + 0.25) * x + out * 2.0 * (x / (s**2 + 0.25).sqrt()).float().double()
    torch.testing.assert_close(net(x, sigma), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(net.body.calls[0][1], sigma.log() / 4)


def test_a_raw_edm_network_gives_the_same_sample_as_a_preconditioned_one() -> None:
    raw = ScoreModel(EDMInput(Recorder(), 0.5), EDM(), "edm", (2, 4)).double()
    whole = ScoreModel(EDMPreconditioned(Recorder(), 0.5), EDM(), "sample", (2, 4)).double()
    for sigma in (0.002, 1.0, 80.0):
        torch.testing.assert_close(raw.denoise(X.double(), sigma), whole.denoise(X.double(), sigma))


def test_edm_without_noise_returns_the_state() -> None:
    m = ScoreModel(EDMPreconditioned(Recorder()), EDM(), "sample", (2, 4))
    assert torch.equal(m(X, 0.0), X)


def test_a_half_precision_edm_network_loses_nothing_of_a_clean_state() -> None:
    """At small σ the state passes through c_skip in its own dtype."""
    m = ScoreModel(EDMPreconditioned(Recorder()), EDM(), "sample", (2, 4)).half()
    torch.testing.assert_close(m(X, 1e-6), X, rtol=0, atol=1e-5)
    assert m(X, 1e-6).dtype == torch.float32 and m.network.body.calls[0][0].dtype == torch.float16


def test_flow_networks_are_told_the_log_odds() -> None:
    m = ScoreModel(FlowTime(Recorder()), RectifiedFlow(), "flow", (2, 4))
    m(X, torch.tensor([0.0, 0.25, 1.0]))
    assert m.network.body.calls[0][1].tolist() == pytest.approx([-2.0, math.log(1 / 3) / 4, 2.0])


@pytest.mark.parametrize("network", [
    EDMPreconditioned(PatchUNet(width=8, width_inner=32, blocks=1, classes=3)),
    FlowTime(PatchUNet(width=8, width_inner=32, blocks=1, classes=3)),
])
def test_the_whole_model_compiles_without_a_graph_break(network: nn.Module) -> None:
    schedule = EDM() if isinstance(network, EDMPreconditioned) else RectifiedFlow()
    m = ScoreModel(network, schedule, "sample", (1, 8, 8), num_classes=3)
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t, condition in ((0.5, None), (0.25, torch.tensor([0, 2]))):
        torch.testing.assert_close(compiled(x, t, condition), m(x, t, condition))


def test_the_continuous_schedule_takes_no_time_beyond_the_data() -> None:
    m = ScoreModel(Recorder(), ContinuousVP(), "epsilon", (2, 4))
    with pytest.raises(ValueError, match="t=-0.1"):
        m(X, -0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_patch_unet_is_told_the_noise_level_as_exactly_as_it_is_given(dtype: torch.dtype) -> None:
    told = []
    network = PatchUNet(width=16, width_inner=32, blocks=1).to(dtype)
    network.embed_noise.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    network(torch.zeros(1, 1, 8, 8, dtype=dtype), torch.tensor([1.23]))
    exact = PatchUNet(width=16, width_inner=32, blocks=1)
    exact.embed_noise.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    exact(torch.zeros(1, 1, 8, 8), torch.tensor([1.23]))
    assert torch.equal(told[0], told[1].to(dtype))
