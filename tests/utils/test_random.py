"""Random numbers drawn within the context leave no trace after it."""

import pytest
import torch

from kd_detr_mmdet.utils.random import preserved_rng


def following(device="cpu"):
    """The number that the next draw gives, without drawing it."""
    get, put = (
        (torch.get_rng_state, torch.set_rng_state)
        if device == "cpu"
        else (torch.cuda.get_rng_state, torch.cuda.set_rng_state)
    )
    state = get()
    number = torch.rand(1, device=device).item()
    put(state)
    return number


@pytest.mark.parametrize("disturb", [lambda: torch.rand(5), lambda: torch.manual_seed(99)])
def test_the_state_is_put_back(disturb):
    torch.manual_seed(0)
    before = following()
    with preserved_rng():
        disturb()
        assert following() != before  # the draw within is a real one
    assert following() == before


def test_the_state_is_put_back_after_an_exception():
    torch.manual_seed(0)
    before = following()
    with pytest.raises(KeyError), preserved_rng():
        torch.rand(5)
        raise KeyError
    assert following() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_the_state_of_a_gpu_is_put_back(device):
    before = following("cuda"), following()
    with preserved_rng(device):
        torch.rand(5, device="cuda"), torch.rand(5)
        assert following("cuda") != before[0]
    assert (following("cuda"), following()) == before
