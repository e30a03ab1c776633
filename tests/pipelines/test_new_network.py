"""The network that a training begins with."""

from __future__ import annotations

import pytest
import torch
import yaml

from faithad.config.study import parse_study
from faithad.pipelines.training.worker import new_network


# torch.compile's own modules warn of themselves when they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize(("compiled", "model"), [("none", "mae"), ("default", "mae"), ("none", "cae")])
def test_a_compiled_network_has_the_names_of_its_weights(compiled: str, model: str) -> None:
    study = parse_study(
        yaml.safe_dump(
            {
                "name": "one",
                "root": "unused",
                "data": {"root": "unused", "train": ["train"], "test": ["test"]},
                "features": {"n_fft": 4000, "hop_samples": 2000, "n_mels": 16},
                "train": {"compile": compiled},
            }
        ),
        name="study",
    )
    network = new_network(study, model, torch.device("cpu"))
    assert not [name for name in network.state_dict() if name.startswith("_")]
    assert (network._compiled_call_impl is not None) == (compiled == "default")
    convolutions = [weight for weight in network.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
