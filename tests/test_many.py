"""Many processes: one run however it is shared out, and what is said when a process is missing, dies or hangs."""

import itertools
from dataclasses import replace

import pytest
import torch
from test_train import ALONE, CONFIG, CPU, begin, equal, go_on, waves

from justimage.networks.dropout import Dropout, kept
from justimage.training.masks import keyed_dropouts, masks_of

DROPPING = {"dropout": 0.2, "dropout_scores": 0.2, "depth": 4}


# Dropout masks


def test_masks_drop_their_share_independently_of_each_other():
    """Counts, and correlations between samples and at distances within one, are those of independent draws."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**31), 2**31 - 1, (64, 2), generator=generator, dtype=torch.int32)
    keys[:4] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])  # neighbours are as good as any
    numbers = 40_000
    off = (kept(keys, torch.Size((64, 200, 200)), 0.3).flatten(1).float() - 0.7) / (0.3 * 0.7) ** 0.5  # (64, N)
    within = [off.mean(1), *((off[:, lag:] * off[:, :-lag]).mean(1) for lag in (1, 2, 31, 32, 200, 1024))]
    between = [(off[a] * off[b]).mean() for a, b in itertools.combinations(range(64), 2)]
    for correlations in (torch.cat(within), torch.stack(between), off.mean(0) * (64 / numbers) ** 0.5):
        z = correlations * numbers**0.5
        assert 0.9 < z.std() < 1.1
        assert z.abs().max() < 6


def test_a_mask_is_a_function_of_seed_module_and_position():
    net = begin(waves(), **DROPPING).model.net
    modules = keyed_dropouts(net)
    assert len(modules) == 2 * 3

    def masks(seed: int, positions: range) -> list[torch.Tensor]:
        with masks_of(modules, seed, positions, CPU):
            return [kept(module.sample_keys, torch.Size((len(positions), 5, 7)), 0.2) for module in modules]  # type: ignore[arg-type]

    whole, part = masks(3, range(16)), masks(3, range(6, 11))
    assert all(torch.equal(a[6:11], b) for a, b in zip(whole, part, strict=True))
    samples = torch.cat([*whole, *masks(4, range(16))])
    assert len({tuple(sample.flatten().tolist()) for sample in samples}) == len(samples)  # no two are alike
    assert all(module.sample_keys is None for module in modules)


def test_a_module_drops_by_its_keys_in_training_alone():
    dropout, x = Dropout(0.5), torch.ones(2, 3, 8)
    dropout.sample_keys = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    assert torch.equal(dropout(x), 2.0 * kept(dropout.sample_keys, x.shape, 0.5))
    assert torch.equal(dropout.eval()(x), x)
    dropout.train().sample_keys = None
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), expected)


@pytest.mark.parametrize("changes", [{"microbatch": 5}, {"checkpoint": True}], ids=str)
def test_masks_are_the_same_in_any_microbatch_and_when_activations_are_computed_again(changes):
    source = waves()
    plain, other = begin(source, **DROPPING), begin(source, replace(CONFIG, **changes), **DROPPING)
    go_on(plain, source)
    go_on(other, source, replace(CONFIG, **changes))
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(other.tensors()[name], tensor, atol=2e-5, rtol=1e-4)


def test_accumulating_four_times_eight_is_thirty_two():
    """The gradients, and the weights after twenty steps, to float32 rounding."""
    source, config = waves(), replace(CONFIG, batch_size=32, duration_nimg=640)
    whole, parts = begin(source, config, **DROPPING), begin(source, config, **DROPPING)
    ticks = go_on(whole, source, config)
    accumulated = go_on(parts, source, replace(config, microbatch=8))
    assert [tick.loss for tick in accumulated] == pytest.approx([tick.loss for tick in ticks], rel=1e-5)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor, atol=1e-5, rtol=1e-4)


class WithPlainDropout(torch.nn.Module):
    """A network of the user's own, with dropout that knows no keys."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net, self.dropout, self.config = net, torch.nn.Dropout(0.3), net.config

    @property
    def condition(self):
        return self.net.condition

    def forward(self, z, t, y=None):
        return self.net(self.dropout(z), t, y)


def test_plain_dropout_repeats_itself_when_a_run_is_resumed(tmp_path):
    from justimage.denoiser import Denoiser
    from justimage.training.build import build
    from justimage.training.state import saved_states

    source = waves()

    def started():
        torch.manual_seed(0)
        net = begin(source).model.net
        return build(Denoiser(WithPlainDropout(net), spec=source.spec), CONFIG, ALONE)

    whole, cut, resumed = started(), started(), started()
    go_on(whole, source)
    go_on(cut, source, until=64)
    cut.save(tmp_path)
    resumed.restore(saved_states(tmp_path)[-1])
    go_on(resumed, source)
    assert equal(whole, resumed)
