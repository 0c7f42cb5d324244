"""Circuits read off the weights: what a head looks for and what it writes, and how heads build on each other.

A head's query-key circuit W_Q W_K^T says which tokens look at which, its output-value circuit W_V W_O what it makes of
what it looks at: matrices [d_model d_model] of rank d_head, kept as two factors. Elhage et al. 2021, A Mathematical
Framework for Transformer Circuits (https://transformer-circuits.pub/2021/framework/index.html).

The weights are taken as they are. A norm's weights and the mean that a LayerNorm takes away belong to these circuits:
`nnzoo.processing.process_weights` folds them in. Rotary positions turn queries and keys between the two factors, which
no matrix of weights alone contains; there the query-key circuit is that of a token with itself.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from nnzoo.analysis.results import Axis, Result
from nnzoo.analysis.subject import Model, Subject

SVD = tuple[Float[Tensor, "*many left inner"], Float[Tensor, "*many inner"], Float[Tensor, "*many right inner"]]


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """A matrix A B [*many left right] as its factors [*many left inner] and [*many inner right], never multiplied out.

    >>> m = FactoredMatrix(torch.ones(5, 2), torch.ones(2, 4))
    >>> m.shape, m.norm.square()
    ((5, 4), tensor(80.))
    """

    A: Float[Tensor, "*#many left inner"]
    B: Float[Tensor, "*#many _ right"]

    def __post_init__(self) -> None:
        if self.A.shape[-1] != self.B.shape[-2]:
            raise ValueError(f"the factors {list(self.A.shape)} and {list(self.B.shape)} do not fit")

    @property
    def AB(self) -> Float[Tensor, "*many left right"]:
        """The matrix itself."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        """Transposed."""
        return FactoredMatrix(self.B.transpose(-1, -2), self.A.transpose(-1, -2))

    @property
    def shape(self) -> tuple[int, ...]:
        many = torch.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return (*many, self.A.shape[-2], self.B.shape[-1])

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "FactoredMatrix | Tensor":
        """Times a matrix or a factored one; times a vector [right] it is the vector [*many left]."""
        if isinstance(other, FactoredMatrix):
            return FactoredMatrix(self.A, self.B @ other.A @ other.B)
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> "FactoredMatrix | Tensor":
        """A matrix, or a vector [left], times this."""
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        return FactoredMatrix(other @ self.A, self.B)

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Some of many matrices: the index goes to the axes before the last two."""
        many = self.shape[:-2]
        A, B = (factor.expand(*many, *factor.shape[-2:]) for factor in (self.A, self.B))
        places = index if isinstance(index, tuple) else (index,)
        if len(places) > len(many):
            raise IndexError(f"{len(places)} indices for {len(many)} axes of matrices; .AB[...] indexes numbers")
        return FactoredMatrix(A[index], B[index])

    @cached_property
    def svd(self) -> SVD:
        """U, S and V with A B = U diag(S) V^T, from decompositions of matrices of the inner size."""
        left, middle_left = torch.linalg.qr(self.A)
        right, middle_right = torch.linalg.qr(self.B.transpose(-1, -2))
        U, S, Vh = torch.linalg.svd(middle_left @ middle_right.transpose(-1, -2))
        return left @ U, S, right @ Vh.transpose(-1, -2)

    @property
    def singular_values(self) -> Float[Tensor, "*many inner"]:
        return self.svd[1]

    @property
    def eigenvalues(self) -> Complex[Tensor, "*many inner"]:
        """The eigenvalues that are not surely 0: those of B A. Raises ValueError where the matrix is not square."""
        if self.A.shape[-2] != self.B.shape[-1]:
            raise ValueError(f"only square matrices have eigenvalues, and this is {list(self.shape)}")
        return torch.linalg.eigvals(self.B @ self.A)

    @property
    def norm(self) -> Float[Tensor, "*many"]:
        """The Frobenius norm."""
        gram = (self.A.transpose(-1, -2) @ self.A) * (self.B @ self.B.transpose(-1, -2))
        return gram.sum(dim=(-1, -2)).clamp(min=0).sqrt()

    def __repr__(self) -> str:
        return f"FactoredMatrix({'x'.join(map(str, self.shape))}, rank at most {self.A.shape[-1]})"


def qk_circuit(model: Model) -> FactoredMatrix:
    """W_Q W_K^T of every head, [layer head d_model d_model]: query from the left, key from the right.

    >>> from nnzoo import load
    >>> qk_circuit(load("nnzoo/tiny-llama"))[2, 1]
    FactoredMatrix(96x96, rank at most 32)
    """
    native = Subject(model).native
    return FactoredMatrix(native.W_Q.detach(), native.W_K.detach().transpose(-1, -2))


def ov_circuit(model: Model) -> FactoredMatrix:
    """W_V W_O of every head, [layer head d_model d_model]: from what is looked at to what is written.

    >>> from nnzoo import load
    >>> ov_circuit(load("nnzoo/tiny-gpt2")).shape
    (4, 4, 96, 96)
    """
    native = Subject(model).native
    return FactoredMatrix(native.W_V.detach(), native.W_O.detach())


def full_ov_circuit(model: Model) -> FactoredMatrix:
    """W_E W_V W_O W_U of every head, [layer head d_vocab d_vocab]: from the token looked at to the logits.

    >>> from nnzoo import load
    >>> full_ov_circuit(load("nnzoo/tiny-gpt2")).shape
    (4, 4, 774, 774)
    """
    native = Subject(model).native
    ov = ov_circuit(model)
    return FactoredMatrix(native.W_E.detach() @ ov.A, ov.B @ native.W_U.detach())


def full_qk_circuit(model: Model) -> FactoredMatrix:
    """W_E W_Q W_K^T W_E^T of every head, [layer head d_vocab d_vocab]: from tokens to the scores between them.

    >>> from nnzoo import load
    >>> full_qk_circuit(load("nnzoo/tiny-gpt2")).shape
    (4, 4, 774, 774)
    """
    native = Subject(model).native
    qk, W_E = qk_circuit(model), native.W_E.detach()
    return FactoredMatrix(W_E @ qk.A, qk.B @ W_E.t())


def copying_scores(model: Model) -> Result:
    """How far each head raises the logits of the token it looks at: [layer head], from -1 to 1.

    The sum of the eigenvalues of the full output-value circuit by the sum of their absolute values: 1 for a head that
    copies, -1 for one that suppresses. Elhage et al. 2021.

    >>> from nnzoo import load
    >>> copying_scores(load("nnzoo/tiny-gpt2")).shape
    {'layer': 4, 'head': 4}
    """
    subject = Subject(model)
    eigenvalues = full_ov_circuit(model).eigenvalues
    values = (eigenvalues.sum(dim=-1) / eigenvalues.abs().sum(dim=-1)).real
    return Result("copying heads", "copying score", values, (subject.axis("layer"), subject.axis("head")))


def composition_scores(model: Model, into: str = "q") -> Result:
    """How much of what one head writes a later one reads: [sender, receiver], heads as "L0H1".

    |W_OV sender . W receiver| / (|W_OV sender| |W receiver|) in Frobenius norms, where the receiver reads by its
    queries ("q": its query-key circuit), its keys ("k": that transposed) or its values ("v"). 0 where the sender is in
    no earlier layer. Random matrices have about 1/sqrt(d_model). Elhage et al. 2021.

    >>> from nnzoo import load
    >>> composition_scores(load("nnzoo/tiny-gpt2"), "k").shape
    {'sender': 16, 'receiver': 16}
    """
    if into not in ("q", "k", "v"):
        raise ValueError(f"into is 'q', 'k' or 'v', not {into!r}")
    subject = Subject(model)
    sender = ov_circuit(model)
    receiver = {"q": qk_circuit, "k": lambda model: qk_circuit(model).T, "v": ov_circuit}[into](model)
    rows = torch.stack([_composed(sender[layer], receiver) for layer in range(subject.n_layers)])
    earlier = torch.arange(subject.n_layers)[:, None] < torch.arange(subject.n_layers)
    values = rows * earlier.to(rows.device)[:, None, :, None]
    names = tuple(f"L{i}H{head}" for i in range(subject.n_layers) for head in range(subject.n_heads))
    axes = (Axis("sender", names), Axis("receiver", names))
    return Result(f"composition into {into}", "composition score", values.reshape(len(names), -1), axes)


def _composed(sender: FactoredMatrix, receiver: FactoredMatrix) -> Float[Tensor, "sender layer head"]:
    """Scores of some heads before all others, by products of the inner size alone."""
    A, B = sender.A[:, None, None], sender.B[:, None, None]
    product = FactoredMatrix(A, (B @ receiver.A) @ receiver.B)
    return product.norm / (sender.norm[:, None, None] * receiver.norm)
