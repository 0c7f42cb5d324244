"""Functions that do more than give a result: what draws random numbers, and what changes a module's buffers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families import error, folder, ours, prompt
from nnzoo import LanguageModel

TOKENS = prompt(2, 9)
RESID = "blocks.1.hook_resid_post"
WIDTH = 48


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> Tensor:
    with torch.no_grad():
        return ours("gpt2", "default").run_with_cache(TOKENS)[1][RESID]


def _module(kind: Callable, *args: object, **kwargs: object) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(1)
    module = kind(*args, **kwargs).double().train()
    return lambda x: tree[0] if isinstance(tree := module(x), tuple) else tree


def _attention(**options: object) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(1)
    module = nn.MultiheadAttention(WIDTH, 4, dropout=0.3, batch_first=True).double()
    return lambda x: module(x, x, x, **options)[0]


def _initialised(initialise: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def of(x: Tensor) -> Tensor:
        y = x.clone()
        initialise(y)
        return y

    return of


# each draws from torch's generator
DRAWING: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "nn.Dropout": _module(nn.Dropout, 0.3),
    "native_dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
    "multi_head_attention": _attention(),
    "multi_head_attention without weights": _attention(need_weights=False),
    "GRU": _module(nn.GRU, WIDTH, WIDTH, 2, dropout=0.3),
    "LSTM": _module(nn.LSTM, WIDTH, WIDTH, 2, dropout=0.3),
    "RNN": _module(nn.RNN, WIDTH, WIDTH, 2, dropout=0.3),
    "TransformerEncoderLayer": _module(nn.TransformerEncoderLayer, WIDTH, 4, 32, 0.3),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, hard=True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu_": _initialised(lambda x: F.rrelu_(x, training=True)),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x[:, None], 2, output_ratio=(0.5, 0.5)),
    "bernoulli": lambda x: x.sigmoid().bernoulli(),
    "bernoulli_ by values": _initialised(lambda x: x.bernoulli_(x.sigmoid())),
    "multinomial": lambda x: x[0].softmax(-1).multinomial(3).double(),
    "normal": lambda x: torch.normal(x, 2.0),
    "poisson": lambda x: torch.poisson(x.abs() * 20),
    "binomial": lambda x: torch.binomial(x.abs().ceil(), x.sigmoid()),
    "gamma": lambda x: torch._standard_gamma(x.abs() + 0.1),
    "random_": _initialised(lambda x: x.random_(0, 100)),
    "exponential_": _initialised(lambda x: x.exponential_()),
    "geometric_": _initialised(lambda x: x.geometric_(0.2)),
    "xavier_uniform_": _initialised(nn.init.xavier_uniform_),
    "trunc_normal_": _initialised(nn.init.trunc_normal_),
    "svd_lowrank": lambda x: torch.svd_lowrank(x, 3)[0],
}


NOT_LISTED = pytest.mark.local("a function that is not among those that a graph may hold")
OF_OWN = {"native_dropout", "GRU", "LSTM", "RNN", "rrelu_", "fractional_max_pool2d", "gamma", "svd_lowrank"}


@pytest.mark.parametrize("name", [pytest.param(one, marks=NOT_LISTED) if one in OF_OWN else one for one in DRAWING])
def test_random_numbers_are_those_of_the_line(model: LanguageModel, plain: Tensor, name: str) -> None:
    function = DRAWING[name]
    with torch.no_grad():
        torch.manual_seed(3)
        function(plain)  # what is drawn is not what a fresh generator gives
        expected, later = function(plain), torch.rand(3)
    with torch.no_grad(), model.trace(TOKENS) as tracer:
        torch.manual_seed(3)
        function(tracer.read(RESID))
        drawn = function(tracer.read(RESID))
        after = torch.rand(3)
        looked = drawn[..., 0].tolist()
    assert error(drawn, expected) < 1e-9
    assert error(torch.tensor(looked), expected[..., 0]) < 1e-5
    assert torch.equal(after, later)
    assert torch.equal(torch.get_rng_state(), _state_after(function, plain))


def _state_after(function: Callable[[Tensor], Tensor], plain: Tensor) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        function(plain), function(plain), torch.rand(3)
        return torch.get_rng_state()


@pytest.mark.parametrize(
    "name", [pytest.param("GRU", marks=NOT_LISTED), "scaled_dot_product_attention", "rrelu", "nn.Dropout"]
)
def test_what_does_not_draw_leaves_the_generator(model: LanguageModel, name: str) -> None:
    idle = {
        "GRU": _module(nn.GRU, WIDTH, WIDTH, 2),
        "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
        "rrelu": F.rrelu,
        "nn.Dropout": nn.Dropout(0.3).eval(),
    }[name]
    before = torch.get_rng_state()
    with model.trace(TOKENS) as tracer:
        given = idle(tracer.read(RESID))
        assert getattr(given._node, "random", None) is None
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_of_the_users_own_is_drawn_from_once(model: LanguageModel, plain: Tensor) -> None:
    def drawn(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(7)
        first = x.clone().bernoulli_(0.5, generator=generator)
        second = x.sigmoid().bernoulli(generator=generator)
        third = nn.init.normal_(x.clone(), generator=generator)
        return first, second, third

    with model.trace(TOKENS) as tracer:
        ours_ = drawn(tracer.read(RESID))
        ours_[1].sum().item()
    for one, expected in zip(ours_, drawn(plain), strict=True):
        assert torch.equal(one, expected)


class Counting(nn.Module):
    """A module of a user's own, with buffers that a call changes."""

    def __init__(self, learns: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, affine=learns, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


STATISTICS = pytest.mark.local("a norm that trains changes its statistics, which are here")


class TestBuffers:
    @STATISTICS
    def test_one_that_was_looked_at_itself_is_updated_all_the_same(self, model: LanguageModel, plain: Tensor) -> None:
        traced, expected = (nn.BatchNorm1d(plain.shape[1], affine=False, dtype=torch.float64) for _ in range(2))
        expected(plain)
        with model.trace(TOKENS) as tracer:
            seen = traced(tracer.read(RESID))
            seen.sum().item()
        for name, buffer in expected.named_buffers():
            assert error(traced.get_buffer(name), buffer) < 1e-10, name

    @STATISTICS
    @pytest.mark.parametrize("learns", [True, False])  # without weights a pass goes on after a look
    @pytest.mark.parametrize("looks", [0, 1, 3])
    def test_a_batch_norm_is_updated_once_a_line(
        self, model: LanguageModel, plain: Tensor, looks: int, learns: bool
    ) -> None:
        traced, expected = Counting(learns), Counting(learns)
        with torch.no_grad():
            outputs = [expected(plain), expected(plain + 1)]
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            first = traced(hidden)
            for _ in range(looks):
                first.sum().item()
            second = traced(hidden + 1)
            if looks:
                second.sum().item()
        assert error(first, outputs[0]) < 1e-10 and error(second, outputs[1]) < 1e-10
        for name, buffer in expected.named_buffers():
            assert error(traced.get_buffer(name), buffer) < 1e-10, name

    @STATISTICS
    def test_it_is_updated_though_nobody_holds_its_output(self, model: LanguageModel, plain: Tensor) -> None:
        traced, expected = Counting(), Counting()
        expected(plain)
        with model.trace(TOKENS) as tracer:
            traced(tracer.read(RESID))
        assert error(traced.norm.running_mean, expected.norm.running_mean) < 1e-10

    @STATISTICS
    def test_its_statistics_are_those_of_the_final_pass(self, model: LanguageModel) -> None:
        traced, expected = Counting(), Counting()
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            traced(hidden).sum().item()
            tracer.put("blocks.1.hook_mlp_out", tracer.read("blocks.1.hook_mlp_out") * 2)
        expected(hidden)
        assert error(traced.norm.running_mean, expected.norm.running_mean) < 1e-10

    def test_in_evaluation_nothing_changes(self, model: LanguageModel) -> None:
        traced = Counting().eval()
        before = traced.norm.running_mean.clone()
        with model.trace(TOKENS) as tracer:
            output = traced(tracer.read(RESID))
            assert not output._recorder.effects
        assert torch.equal(traced.norm.running_mean, before)
