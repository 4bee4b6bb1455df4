"""Remembered values follow the weights that they were computed from."""

import torch

from recbole_flr.model.remembered import Remembered


def test_a_value_is_computed_again_after_each_change():
    layer, calls, remembered = torch.nn.Linear(3, 3), [], Remembered()

    def value():
        return remembered.of(layer.parameters(), lambda: calls.append(1) or layer.weight.sum() + layer.bias.sum())

    def expect(count):
        with torch.no_grad():
            assert torch.equal(value(), layer.weight.sum() + layer.bias.sum()) and len(calls) == count
            assert torch.equal(value(), layer.weight.sum() + layer.bias.sum()) and len(calls) == count

    expect(1)
    layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})
    expect(2)
    value().backward()
    assert len(calls) == 3 and torch.equal(layer.bias.grad, torch.ones(3))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    optimizer.step()
    expect(4)
    layer.double()
    expect(5)
    layer.weight.data = torch.zeros(3, 3).double()
    expect(6)


def test_the_ranking_of_flrmix_follows_its_weights(build):
    _, model, loaders = build("FLRMix")
    batch = next(iter(loaders[1]))[0]
    model.eval()
    with torch.no_grad():
        before = model.full_sort_predict(batch)
        assert torch.equal(before, model.full_sort_predict(batch))
        model.vectors.ids.weight.mul_(3)
        after = model.full_sort_predict(batch)
    assert not torch.allclose(before[:, 1:], after[:, 1:])
    assert torch.allclose(after, model.full_sort_predict(batch).detach())
