"""The functions that a stored graph may name: PyTorch's tensor operations, and the model's own modules by their paths.

A name is looked up in a list, never imported: whoever reads a graph runs nothing that does not stand here. Left out
is what hands out memory that is nobody's or somebody else's (`empty`, `resize_`, `set_`, `as_strided`), what reads
files or runs code, what edits an argument that is not its first, what turns a value in place (`t_`: its
shape would be another than is known; a trace records the view instead) and what ends the process on some numbers
(`lcm`). What does harm on some arguments only is in `call_checks.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from nnzoo.tracing.gradients import require_grad
from nnzoo.tracing.infer import picked
from nnzoo.tracing.wholes import copy_part, stack_ids, stack_prompts


class GraphError(ValueError):
    """A graph that cannot be stored, read or run, and which of its nodes is the reason."""

    line: Any = None  # where the user's code recorded that node, a nnzoo.tracing.graph.Line


@dataclass(frozen=True)
class ModuleCall:
    """A module of the model as a function of values, known by its path."""

    path: str
    find: Callable[[], Callable] | None = field(default=None, compare=False)  # the module, when it is to run
    shapes: Callable | None = field(default=None, compare=False)  # answers on the meta device

    @property
    def __name__(self) -> str:
        return f"model.{self.path}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.find is None:
            raise GraphError(f"model.{self.path} was read from a graph; run the graph on a model")
        return self.find()(*args, **kwargs)


MODULE = "model:"  # before the path of a module
_BOTH = """
    abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all amax amin aminmax angle any
    arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere asin asinh atan atan2
    atanh baddbmm bernoulli bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
    bitwise_xor bmm broadcast_to ceil cholesky cholesky_inverse cholesky_solve chunk clamp clamp_max clamp_min
    clip clone conj conj_physical copysign corrcoef cos cosh count_nonzero cov cross cummax cummin cumprod cumsum
    deg2rad det detach diag diag_embed diagflat diagonal diagonal_scatter diff digamma dist div divide dot dsplit
    eq erf erfc erfinv exp exp2 expm1 fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod
    frac frexp gather gcd ge ger greater greater_equal gt hardshrink heaviside histc histogram hsplit hypot i0
    igamma igammac index_add index_fill index_put index_reduce index_select inner inverse isclose isfinite isinf
    isnan isneginf isposinf isreal istft kron kthvalue ldexp le lerp less less_equal lgamma log log10 log1p
    log2 log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit
    logsumexp lt lu_solve masked_fill masked_scatter masked_select matmul matrix_exp matrix_power max maximum mean
    median min minimum mm mode moveaxis movedim msort mul multinomial multiply mv mvlgamma nan_to_num nanmean
    nanmedian nanquantile nansum narrow ne neg negative nextafter nonzero norm not_equal outer permute pinverse
    polygamma positive pow prelu prod put qr quantile rad2deg ravel reciprocal relu remainder renorm
    repeat_interleave reshape resolve_conj resolve_neg roll rot90 round rsqrt scatter scatter_add scatter_reduce
    select select_scatter sgn sigmoid sign signbit sin sinc sinh slice_scatter slogdet softmax sort split
    split_with_sizes sqrt square squeeze std stft sub subtract sum svd swapaxes swapdims t take take_along_dim tan
    tanh tensor_split tile topk trace transpose triangular_solve tril triu true_divide trunc unbind
    unique_consecutive unsqueeze var vdot vsplit where xlogy
"""  # torch.add and torch.Tensor.add
_TORCH = """
    alpha_dropout atleast_1d atleast_2d atleast_3d bilinear binary_cross_entropy_with_logits block_diag
    broadcast_tensors bucketize cartesian_prod cat cdist celu channel_shuffle column_stack combinations complex
    concat concatenate constant_pad_nd conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    cosine_embedding_loss cosine_similarity cumulative_trapezoid dropout dstack einsum embedding
    feature_alpha_dropout feature_dropout frobenius_norm group_norm hinge_embedding_loss histogramdd hstack imag
    isin kl_div layer_norm margin_ranking_loss meshgrid normal nuclear_norm pairwise_distance pdist pixel_shuffle
    pixel_unshuffle poisson poisson_nll_loss polar real rms_norm row_stack rrelu rsub searchsorted selu stack
    std_mean tensordot threshold trapezoid trapz triplet_margin_loss unflatten unravel_index var_mean
    view_as_complex view_as_real vstack
"""
_METHODS = """
    bfloat16 bool byte cdouble cfloat chalf char contiguous cpu cuda double expand expand_as float half index int
    long lu repeat reshape_as short sum_to_size to to_dense type type_as unflatten unfold unique view view_as
"""
_EDITS = """
    abs_ absolute_ acos_ acosh_ add_ addbmm_ addcdiv_ addcmul_ addmm_ addmv_ addr_ arccos_ arccosh_ arcsin_
    arcsinh_ arctan2_ arctan_ arctanh_ asin_ asinh_ atan2_ atan_ atanh_ baddbmm_ bernoulli_ bitwise_and_
    bitwise_left_shift_ bitwise_not_ bitwise_or_ bitwise_right_shift_ bitwise_xor_ cauchy_ ceil_ clamp_ clamp_max_
    clamp_min_ clip_ conj_physical_ copy_ copysign_ cos_ cosh_ cumprod_ cumsum_ deg2rad_ detach_ digamma_ div_
    divide_ eq_ erf_ erfc_ erfinv_ exp2_ exp_ expm1_ exponential_ fill_ fill_diagonal_ fix_ float_power_ floor_
    floor_divide_ fmod_ frac_ gcd_ ge_ geometric_ greater_ greater_equal_ gt_ heaviside_ hypot_ i0_ igamma_
    igammac_ index_add_ index_copy_ index_fill_ index_put_ index_reduce_ ldexp_ le_ lerp_ less_ less_equal_
    lgamma_ log10_ log1p_ log2_ log_ log_normal_ logical_and_ logical_not_ logical_or_ logical_xor_ logit_ lt_
    masked_fill_ masked_scatter_ mul_ multiply_ mvlgamma_ nan_to_num_ ne_ neg_ negative_ nextafter_ normal_
    not_equal_ polygamma_ pow_ put_ rad2deg_ random_ reciprocal_ relu_ remainder_ renorm_ round_ rsqrt_ scatter_
    scatter_add_ scatter_reduce_ sgn_ sigmoid_ sign_ sin_ sinc_ sinh_ sqrt_ square_ sub_ subtract_
    tan_ tanh_ tril_ triu_ true_divide_ trunc_ uniform_ xlogy_ zero_
"""
_OPERATORS = """
    abs add and div eq floordiv ge getitem gt iadd iand idiv ifloordiv ilshift imod imul invert ior ipow irshift
    isub itruediv ixor le lshift lt matmul mod mul ne neg or pos pow radd rand rdiv reversed rfloordiv rlshift
    rmatmul rmod rmul ror rpow rrshift rshift rsub rtruediv rxor setitem sub truediv xor
"""  # torch.Tensor.__add__ and so on
_FUNCTIONAL = """
    alpha_dropout batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits celu channel_shuffle conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_embedding_loss cosine_similarity
    cross_entropy dropout dropout1d dropout2d dropout3d elu embedding feature_alpha_dropout gaussian_nll_loss gelu
    glu group_norm gumbel_softmax hardshrink hardtanh hinge_embedding_loss huber_loss kl_div l1_loss layer_norm
    leaky_relu linear linear_cross_entropy local_response_norm log_sigmoid log_softmax margin_ranking_loss mish
    mse_loss multi_head_attention_forward multilabel_soft_margin_loss nll_loss normalize one_hot pad
    pairwise_distance pdist pixel_shuffle pixel_unshuffle poisson_nll_loss prelu relu relu6 rms_norm rrelu
    scaled_dot_product_attention selu silu smooth_l1_loss soft_margin_loss softmax softmin softplus softshrink
    softsign tanhshrink triplet_margin_loss unfold
"""
_LINALG = """
    cholesky cholesky_ex cond cross det diagonal eig eigh eigvals eigvalsh householder_product inv inv_ex lstsq lu
    lu_factor lu_solve matmul matrix_exp matrix_norm matrix_power matrix_rank multi_dot norm pinv qr slogdet solve
    solve_triangular svd svdvals vander vecdot vector_norm
"""
_FFT = """
    fft fft2 fftn fftshift hfft hfft2 hfftn ifft ifft2 ifftn ifftshift ihfft ihfft2 ihfftn irfft irfft2 irfftn
    rfft rfft2 rfftn
"""
_SPECIAL = """
    digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammainc gammaincc gammaln i0 i0e i1 i1e log1p log_ndtr
    log_softmax logit logsumexp multigammaln ndtr ndtri polygamma psi round sinc softmax xlog1py xlogy zeta
"""

_INIT = "constant_ normal_ uniform_ kaiming_uniform_"
_ATTRIBUTES = "T mT H mH real imag data"
_OWN = {
    "torch.autograd.grad": torch.autograd.grad,
    "torch.meshgrid of a list": torch._C._VariableFunctions.meshgrid,  # type: ignore[attr-defined]  # what torch.meshgrid calls
    "nnzoo.stack_prompts": stack_prompts,
    "nnzoo.stack_ids": stack_ids,
    "nnzoo.copy_part": copy_part,
    "nnzoo.require_grad": require_grad,
    "nnzoo.picked": picked,
}


@cache
def allowed() -> dict[str, Callable]:
    """Every function of the list that this version of PyTorch has, by its name."""
    spaces = [
        ("torch", torch, _BOTH + _TORCH),
        ("torch.Tensor", torch.Tensor, _BOTH + _METHODS + _EDITS),
        ("torch.Tensor", torch.Tensor, " ".join(f"__{name}__" for name in _OPERATORS.split())),
        ("torch.nn.functional", torch.nn.functional, _FUNCTIONAL),
        ("torch.linalg", torch.linalg, _LINALG),
        ("torch.fft", torch.fft, _FFT),
        ("torch.special", torch.special, _SPECIAL),
        ("torch.nn.init", torch.nn.init, _INIT),
    ]
    found = {
        f"{space}.{name}": getattr(owner, name)
        for space, owner, names in spaces
        for name in names.split()
        if hasattr(owner, name)
    }
    return found | {f"torch.Tensor.{name}": getattr(torch.Tensor, name).__get__ for name in _ATTRIBUTES.split()} | _OWN


@cache
def _names() -> dict[Callable, str]:
    return {fn: name for name, fn in reversed(allowed().items())}


def encode_function(fn: Callable) -> str:
    """A function's name in the list. Raises GraphError for one that is not in it, a lambda or a module of one's own.

    >>> encode_function(torch.Tensor.add), encode_function(torch.nn.functional.gelu)
    ('torch.Tensor.add', 'torch.nn.functional.gelu')
    """
    if isinstance(fn, ModuleCall):
        return MODULE + fn.path
    try:
        name = _names().get(fn)
    except TypeError:  # a callable that cannot be hashed
        name = None
    if name is None and isinstance(fn, torch._ops.OpOverload):
        raise GraphError(
            f"{fn}, one of the operators that torch.vmap and torch.func are made of, is not among those that a graph "
            "may hold: write the transform out, as a loop, or run the trace here without storing it"
        )
    if name is None:
        raise GraphError(f"{full_name(fn)} is not among the functions that a graph may hold: PyTorch's own on tensors")
    return name


def decode_function(name: Any, model: Any = None) -> Callable:
    """The function of a name; the model's modules need the `model` to run. Raises GraphError for any other name.

    >>> decode_function("torch.Tensor.add") is torch.Tensor.add
    True
    """
    if not isinstance(name, str):
        raise GraphError(f"a function's name is a string, not {name!r:.40}")
    if name.startswith(MODULE):
        path = name.removeprefix(MODULE)
        return ModuleCall(path) if model is None else _module_call(model, path)
    if name not in allowed():
        raise GraphError(f"{name!r:.80} is not among the functions that a graph may hold")
    return allowed()[name]


def _module_call(model: Any, path: str) -> ModuleCall:
    from nnzoo.envoys.calling import module_call  # the envoys stand on this package

    try:
        return module_call(model, path)
    except (TypeError, LookupError) as error:
        raise GraphError(f"{path!r:.80} is no module of this model that can be called: {error}") from error


def full_name(fn: Any) -> str:
    """What a function calls itself, with its module: of a lambda of the user's too."""
    if isinstance(fn, ModuleCall):
        return fn.__name__
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if module else name
