"""Functions that random arguments hardly ever suit, called as a user would: the server gives what they give here."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from families import folder, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.infer import map_tensors
from wire import answers, packed, values

# x [3, 3], s positive definite, b [2, 3, 3], v [3] and image [1, 4, 4, 4] are traced, as are the counts k [3] and the
# truths t [3, 3]; i and j are indices of the body's own.
METHODS = """
    x.abs()  x.__abs__()  t.__and__(t)  t.__rand__(t)  x[..., 1:]  x.__matmul__(x)  x.__rmatmul__(x)
    x.__rmod__(x)  2**x  x / 2  k.__rrshift__(k)  x.addbmm(b,b)  x.addmm(x,x)  v.addmv(x,v)  x.addr(v,v)
    b.baddbmm(b,b)  b.bmm(b)  x.cross(x)  x.cholesky_solve(s)  x.diagonal_scatter(v)  v.dot(v)  x.index_add(0,i,x)
    x.index_fill(0,i,1.5)  x.index_put((i,),v)  x.index_reduce(0,i,x,"amax")  x.index_select(0,i)  x.isclose(x)
    x.lerp(x,0.3)  x.masked_fill(t,0.5)  x.mm(x)  x.movedim(0,1)  x.mv(v)  x.narrow(0,1,2)  v.outer(v)
    x.sigmoid().polygamma(1)  v.vdot(v)  x.prelu(v[:1])  x.put(i,v)  x.renorm(2,0,1.0)  x.scatter_add(0,j,x)
    x.select_scatter(v,0,1)  x.split_with_sizes([1,2])  x.take(i)  x.take_along_dim(j,0)  x.triangular_solve(s)
    x.type(torch.float32)  x.unflatten(0,(3,1))  x.where(t,0.0)  x.lu_solve(*torch.linalg.lu_factor(s))
    x.masked_scatter(t,x)  v.stft(4,return_complex=True)  x.swapdims(0,1)
"""
EDITS = """
    add_(x)  detach_()  addbmm_(b,b)  addcdiv_(x,s)  addmm_(x,x)  addr_(v,v)  float_power_(2)  index_add_(0,i,x)
    index_copy_(0,i,x)  index_fill_(0,i,1.5)  index_put_((i,),v)  index_reduce_(0,i,x,"prod")  ldexp_(k)
    masked_fill_(t,0.5)  mul_(x)  masked_scatter_(t,x)  nextafter_(x)  put_(i,v)  scatter_(0,j,x)
    scatter_add_(0,j,x)  scatter_reduce_(0,j,x,"amax")  __iadd__(x)  __isub__(x)
"""
INTEGER_EDITS = "bitwise_and_(k)  bitwise_xor_(k)  bitwise_right_shift_(k)  gcd_(k)  __ior__(k)  __irshift__(k)"
TORCH = """
    addbmm(x,b,b)  addmm(x,x,x)  addmv(v,x,v)  baddbmm(b,b,b)  bilinear(x,x,b,None)  bmm(b,b)  cholesky_solve(x,s)
    concatenate([x,x])  binary_cross_entropy_with_logits(x,t.double())  channel_shuffle(image,2)
    cosine_embedding_loss(x,x,v.sign())  cross(x,x)  conv1d(image[0],image[0])  conv2d(image,image)
    conv3d(image[None],image[None])  conv_transpose1d(image[0],image[0])
    conv_transpose2d(image,image.mT.reshape(4,1,4,4))  conv_transpose3d(image[None],image[None])
    diagonal_scatter(x,v)  dot(v,v)  einsum("ij,jk->ik",x,x)  embedding(x,k)  gather(x,0,j)  gcd(k,k)
    index_add(x,0,i,x)  index_fill(x,0,i,1.5)  index_put(x,(i,),v)  index_reduce(x,0,i,x,"amax")
    index_select(x,0,i)  lerp(x,x,0.5)  log(s)  lu_solve(x,*linalg.lu_factor(s))  masked_fill(x,t,0.5)
    masked_scatter(x,t,x)  meshgrid(v,v,indexing="ij")  meshgrid([v,v],indexing="xy")  mm(x,x)  mv(x,v)
    nanquantile(x,0.5,dim=0)
    narrow(x,0,1,2)  pixel_shuffle(image,2)  prelu(x,v[:1])  put(x,i,v)  repeat_interleave(x,2,0)
    scatter(x,0,j,x)  scatter_add(x,0,j,x)  scatter_reduce(x,0,j,x,"amax")  select_scatter(x,v,0,1)
    split_with_sizes(x,[1,2])  stft(v,4,return_complex=True)  swapdims(x,0,1)  tensordot(x,x,1)
    triangular_solve(x,s)  triplet_margin_loss(x,x+1,x-1)  unravel_index(k,(3,3))  vdot(v,v)
    view_as_complex(x[:,:2].clone())  view_as_real(complex(x,x))  where(t,x,0.0)  linalg.cholesky(s)
    linalg.cross(x,x)  linalg.eigh(s).eigenvalues  linalg.eigvalsh(s)  linalg.matmul(x,x)
    linalg.householder_product(x,v)  linalg.lu_solve(*linalg.lu_factor(s),x)  linalg.matrix_norm(x)
    linalg.multi_dot([x,x,x])  linalg.solve(s,x)  linalg.solve_triangular(s,x,upper=True)  linalg.svd(x).S
"""
FUNCTIONAL = """
    batch_norm(x,v,v.abs())  bilinear(x,x,b)  binary_cross_entropy(x.sigmoid(),t.double())
    channel_shuffle(image,2)  conv1d(image[0],image[0])  conv2d(image,image)  conv3d(image[None],image[None])
    conv_transpose1d(image[0],image[0])  conv_transpose2d(image,image.mT.reshape(4,1,4,4))
    conv_transpose3d(image[None],image[None])  cosine_embedding_loss(x,x,v.sign())  cross_entropy(x,k)
    embedding(k,x)  layer_norm(x,(3,),v,v)  linear(x,x,v)  linear_cross_entropy(x,s,k)
    local_response_norm(image,2)  margin_ranking_loss(x,x,t.double()*2-1)  nll_loss(x,k)  one_hot(k,3)
    pad(x,(1,2))  pad(image,(1,1,1,1),mode="reflect")  pixel_unshuffle(image,2)  prelu(x,v[:1])
    rms_norm(x,(3,),v)  scaled_dot_product_attention(b,b,b,is_causal=True)  unfold(image,2)
    multi_head_attention_forward(b,b,b,3,1,cat([x,x,x]),None,None,None,False,0.0,x,v)[0]
"""


def calls(text: str, before: str = "") -> list[str]:
    return [before + call.strip() for call in re.split(r"  +|\n", text) if call.strip()]


CALLS = [
    *calls(METHODS),
    *calls(EDITS, "x.clone()."),
    *calls(INTEGER_EDITS, "k.clone()."),
    *calls(TORCH, "torch."),
    *calls(FUNCTIONAL, "F."),
]


@cache
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def words(hidden: Tensor) -> dict[str, Any]:
    """What the calls are of; torch's own names stand for themselves."""
    x = hidden[0, :3, :3]
    made = {"x": x, "v": x[0], "s": x @ x.T + torch.eye(3).double(), "b": hidden[:, :3, 3:6], "t": x > 0}
    made |= {"k": (x[0].abs() * 10).long() % 3, "image": hidden[:1, :4, :16].reshape(1, 4, 4, 4)}
    made |= {"i": torch.tensor([2, 0, 1]), "j": torch.tensor([[2, 0, 1], [0, 1, 2], [1, 1, 0]])}
    return {**vars(torch), **made, "torch": torch, "F": torch.nn.functional}


@pytest.mark.parametrize("call", CALLS)
def test_a_function_gives_there_what_it_gives_here(call: str) -> None:
    kept: list[Tensor] = []
    with model().trace(prompt(2, 6)) as tracer:
        map_tensors(lambda one: kept.append(one.save()), eval(call, words(tracer.read("blocks.1.hook_resid_post"))))
        request = packed(tracer.graph)
    (answer,) = answers(model(), [request])
    theirs = [value for _, value in sorted(values(answer).items())]
    assert len(kept) == len(theirs) > 0
    for here, there in zip(kept, theirs, strict=True):
        torch.testing.assert_close(there, here, equal_nan=True)
