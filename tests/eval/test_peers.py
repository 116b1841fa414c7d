"""The schedulers of diffusers, run on our models: they spend what is asked, and end at the same solution."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler

from eval.peers import Peer, own_nfe, peers, walk_peer
from samplers import sample
from samplers.lockstep import run_together
from scoremodels.analytic import MixtureModel
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, NoiseSchedule, RectifiedFlow

CONVERGING = (
    "EDMEuler karras zero", "EDMDPMSolver-3 heun karras zero", "DDIM trailing", "PNDM linspace", "PLMS linspace",
    "LMS karras", "Euler exponential", "Heun karras", "KDPM2 karras", "DEIS-3 karras", "UniPC-3 bh2 karras",
    "UniPC-3 noise trailing", "dpmsolver++-3 heun multistep lu", "dpmsolver-2 midpoint singlestep karras",
    "FlowMatchEuler shift 3", "FlowMatchHeun shift 1", "UniPC-2 bh2 flow shift 1",
    "dpmsolver++-2 midpoint singlestep flow shift 3", "IPNDM")


def mixture(schedule: NoiseSchedule) -> ScoreModel:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    return MixtureModel(means, torch.full((5,), 0.2), torch.ones(5), schedule)


def noise(model: ScoreModel, count: int) -> torch.Tensor:
    return torch.randn(count, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()], ids=lambda s: s.kind)
def test_in_any_coordinates_they_converge_to_our_solution(schedule: NoiseSchedule) -> None:
    model = mixture(schedule)
    start = noise(model, 16)
    exact = sample(model, x_T=start * schedule.prior_scale(schedule.t_max), solver="dpm-solver++-3m", grid="log-snr",
                   nfe=150, end="clean").samples
    chosen = [peer for peer in peers(model) if peer.name in CONVERGING]
    assert len(chosen) >= 12
    for peer in chosen:
        (end,) = run_together(model, [walk_peer(model, peer, start, own_nfe(peer, 50))], states=16)
        assert (end - exact).square().mean().sqrt() < 0.1, peer.name


def test_on_its_own_model_a_scheduler_is_run_as_it_is() -> None:
    model, scheduler = load("fashion-mnist-ddpm"), DDIMScheduler(beta_schedule="linear", clip_sample=False)
    start = x = noise(model, 1).float()
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, float(t)), t, x).prev_sample
    (peer,) = (peer for peer in peers(model) if peer.name == "DDIM leading")
    (end,) = run_together(model, [walk_peer(model, peer, start, 4)], states=1)
    torch.testing.assert_close(end, x, rtol=1e-4, atol=1e-4)


def test_on_an_edm_model_the_edm_scheduler_is_run_as_it_is() -> None:
    model, scheduler = mixture(EDM()), EDMEulerScheduler()
    start = noise(model, 2)
    scheduler.set_timesteps(5)
    x = start * 80.0
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        scaled = scheduler.scale_model_input(x, t)  # the raw network's input, from whose output it makes x0
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        raw = (model(x, float(sigma)) - skip * x) / out
        assert torch.isfinite(scaled).all()
        x = scheduler.step(raw, t, x).prev_sample
    (end,) = run_together(model, [walk_peer(model, Peer("EDMEuler", "EDMEulerScheduler"), start, 5)], states=2)
    torch.testing.assert_close(end, x.to(end.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fashion-mnist-edm", "fashion-mnist-flow", "fashion-mnist-ddpm"])
def test_every_scheduler_asks_for_exactly_the_evaluations_that_it_says(name: str) -> None:
    model = load(name)
    zero = torch.zeros(1, *model.shape)
    for peer in peers(model)[::9]:
        count = own_nfe(peer, 8)
        if count == 0:
            continue
        walk, spent = walk_peer(model, peer, zero, count), 1
        next(walk)
        try:
            while True:
                walk.send(zero)
                spent += 1
        except StopIteration:
            assert spent == count, peer.name


def test_what_cannot_be_spent_exactly_is_refused() -> None:
    model = load("fashion-mnist-ddpm")
    heun = Peer("Heun", "HeunDiscreteScheduler")
    assert own_nfe(heun, 8) == 7
    with pytest.raises(ValueError, match="nfe=8"):
        walk_peer(model, heun, torch.zeros(1, *model.shape), 8)
    assert own_nfe(Peer("PNDM", "PNDMScheduler"), 5) == 0


def test_a_model_without_schedulers_is_refused() -> None:
    model = mixture(EDM())
    model.schedule = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="schedule="):
        peers(model)
