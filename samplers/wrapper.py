"""A model that wraps a model: same network, schedule and sample shape, another prediction."""

from __future__ import annotations

from torch import nn

from scoremodels.model import ScoreModel


class Wrapper(ScoreModel):
    """Take over all that describes a model; what comes in and out of it is for the wrapper's ``forward`` to change.

    Args:
        model: the model to wrap, kept as ``self.model``.
        prediction: what the wrapper predicts; None for what the model predicts.
    """

    def __init__(self, model: ScoreModel, prediction: str | None = None) -> None:
        super().__init__(model.network, model.schedule, prediction or model.prediction, model.shape,
                         num_classes=model.num_classes, label_dropout=model.label_dropout, name=model.name,
                         value_range=model.value_range)
        self.model = model


class Guidance(Wrapper):
    """A wrapper that steers its model somewhere; without it, samples follow :attr:`unguided`."""

    @property
    def unguided(self) -> ScoreModel:
        """The model without this guidance."""
        return self.model


def modules_of(model: ScoreModel, kind: type[nn.Module]) -> list[nn.Module]:
    """All modules of one kind within a model, itself among them."""
    return [module for module in model.modules() if isinstance(module, kind)]
