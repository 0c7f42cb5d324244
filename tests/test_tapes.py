"""A tape writes down operations, and its calls do them again, with what is live as it is then."""

import pytest
import torch
from torch import Tensor, nn

from nnzoo.generation.tapes import Tape


@pytest.mark.parametrize(
    "asks", [lambda x: x * x.sum().item(), lambda x: x[x > 0], lambda x: x if torch.equal(x, x) else -x], ids=range(3)
)
def test_what_depends_on_numbers_cannot_be_taped(asks):
    with pytest.raises(RuntimeError, match="depends on numbers"):
        Tape().written(lambda: asks(torch.ones(3)))


def again(calls: list) -> None:
    for call in calls:
        call()


def test_a_tape_does_again_what_was_done():
    x, kept, tape = torch.arange(6.0).view(2, 3), torch.zeros(2, 3), Tape()

    def work() -> Tensor:
        kept.add_(x)  # in place, outside
        parts = torch.stack([*x.unbind(0), x.t()[:, 0]])  # a list of views
        values, _ = parts.sort(dim=-1, descending=True)  # two results
        rolled = parts.roll(1, -1) + parts.roll(-2, 0) - parts.roll(0, 1) + parts.roll((1, 2), (0, 1)) * parts.roll(1)
        return torch.addcmul(values, parts, rolled, value=0.5) + torch.arange(3).float()

    with torch.no_grad():
        output, calls = tape.written(work)
        x.copy_(x.flip(1) * 3)
        again(calls)
        assert torch.equal(kept, torch.arange(6.0).view(2, 3) + x)
        found = output.clone()
        assert torch.equal(found, work())


def test_what_is_live_grows_and_what_is_made_of_it_is_found_again():
    tape, tokens = Tape(), [torch.ones(1, 1, 1, 4)]  # [batch head key d_head]
    query = torch.rand(1, 1, 1, 4)

    def keys() -> tuple[Tensor, None]:
        return torch.cat(tokens, dim=2), None

    def work() -> Tensor:
        k, nothing = tape.live(keys)
        assert nothing is None
        scaled = torch.cat([k * 2, k], dim=-1)[..., :4]  # inside a list
        return nn.functional.scaled_dot_product_attention(query, scaled, value=k + 1) + 1

    with torch.inference_mode():
        output, calls = tape.written(work)
        for _ in range(3):
            tokens.append(torch.rand(1, 1, 1, 4))
            again(calls)
            assert torch.equal(output, work())


def test_what_is_live_in_one_piece_of_work_is_so_in_the_next():
    tape, count = Tape(), [1]

    def work() -> Tensor:
        nonlocal found
        (found,) = tape.live(lambda: (torch.full((count[0],), 2.0),))
        return found.sum()

    found = torch.empty(0)
    _, first = tape.written(work)
    second, calls = tape.written(lambda: found.sum() * 3)
    assert second == 6
    count[0] = 4
    again(first + calls)
    assert second == 24 and len(tape.now(found)) == 4


def test_a_tape_at_rest_writes_nothing():
    tape = Tape()
    assert tape.live(lambda x: x + 1, 2) == 3
    with tape:
        torch.ones(2) * 2
    assert tape.written(lambda: torch.ones(1))[0] == 1


def test_products_of_any_layout_are_done_again():
    x, weight, bias = torch.rand(4, 2, 3), torch.rand(5, 3), torch.rand(5)

    def work() -> Tensor:
        turned, vector = x.transpose(0, 1), nn.functional.linear(x, weight[0])
        return nn.functional.linear(turned, weight, bias) + nn.functional.linear(turned, weight) + vector.t()[..., None]

    with torch.inference_mode():
        output, calls = Tape().written(work)
        x.mul_(3)
        again(calls)
        torch.testing.assert_close(output, work())
