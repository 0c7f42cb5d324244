"""FactoredMatrix by TransformerLens's names; the decompositions are nnzoo.analysis's."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nnzoo.analysis.circuits import SVD
from nnzoo.analysis.circuits import FactoredMatrix as Factors


class FactoredMatrix:
    """A matrix A B [*many left right] as its factors A [*many left inner] and B [*many inner right].

    >>> m = FactoredMatrix(torch.ones(5, 2), torch.ones(2, 4))
    >>> m.shape, (m @ torch.ones(4)).tolist(), m.norm().square()
    (torch.Size([5, 4]), [8.0, 8.0, 8.0, 8.0, 8.0], tensor(80.))
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise AssertionError(f"the factors {list(A.shape)} and {list(B.shape)} do not fit")
        self.ldim, self.mdim, self.rdim = A.shape[-2], B.shape[-2], B.shape[-1]
        many = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        self.has_leading_dims = bool(many)
        self.A = A.broadcast_to(*many, self.ldim, self.mdim)
        self.B = B.broadcast_to(*many, self.mdim, self.rdim)
        self.shape = torch.Size([*many, self.ldim, self.rdim])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    @property
    def AB(self) -> Tensor:
        """The matrix itself [*many left right]."""
        return self.A @ self.B

    @property
    def BA(self) -> Tensor:
        """The product the other way round [*many inner inner]. AssertionError where the matrix is not square."""
        if self.ldim != self.rdim:
            raise AssertionError(f"B A is of square matrices, and this is {list(self.shape)}")
        return self.B @ self.A

    @property
    def T(self) -> "FactoredMatrix":
        """Transposed."""
        return FactoredMatrix(self.B.transpose(-2, -1), self.A.transpose(-2, -1))

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "FactoredMatrix | Tensor":
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if other.ndim < 2:
            return (self.A @ (self.B @ other[..., None]))[..., 0]
        smaller_first = self.rdim > self.mdim
        return FactoredMatrix(self.A, self.B @ other) if smaller_first else FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Tensor) -> "FactoredMatrix | Tensor":
        if other.ndim < 2:
            return ((other[..., None, :] @ self.A) @ self.B)[..., 0, :]
        smaller_first = self.ldim > self.mdim
        return FactoredMatrix(other @ self.A, self.B) if smaller_first else FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: float | int | Tensor) -> "FactoredMatrix":
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise AssertionError(f"* takes a number, not a tensor {list(scalar.shape)}; products of matrices are @")
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __getitem__(self, idx: Any) -> "FactoredMatrix":
        """Some of the matrices, or some rows and columns; a single row or column keeps its axis."""
        places = idx if isinstance(idx, tuple) else (idx,)
        many, given = self.ndim - 2, [place for place in places if place is not None]
        if len(given) > self.ndim:
            raise ValueError(f"{len(given)} indices for a FactoredMatrix of {self.ndim} axes")
        leading = tuple(places[: len(places) - max(0, len(given) - many)])
        row, column = [_kept(place) for place in [*given[many:], slice(None), slice(None)]][:2]
        return FactoredMatrix(self.A[leading][..., row, :], self.B[leading][..., column])

    @cached_property
    def _decomposed(self) -> SVD:
        return Factors(self.A, self.B).svd

    def svd(self) -> SVD:
        """U [*many left inner], S [*many inner] and V [*many right inner], with A B = U diag(S) V^T."""
        return self._decomposed

    @property
    def U(self) -> Tensor:
        return self._decomposed[0]

    @property
    def S(self) -> Tensor:
        return self._decomposed[1]

    @property
    def V(self) -> Tensor:
        return self._decomposed[2]

    @property
    def Vh(self) -> Tensor:
        """V, by the name that it has in version 2: not transposed."""
        return self.V

    @property
    def eigenvalues(self) -> Tensor:
        """Those that are not surely 0 [*many inner]. AssertionError where the matrix is not square."""
        BA = self.BA
        return torch.linalg.eigvals(BA.float() if BA.dtype.itemsize < 4 else BA)

    def norm(self) -> Tensor:
        """The Frobenius norm [*many]."""
        return Factors(self.A, self.B).norm

    def make_even(self) -> "FactoredMatrix":
        """The same matrix with the singular values' roots in either factor."""
        U, S, V = self._decomposed
        root = S.sqrt()
        return FactoredMatrix(U * root[..., None, :], root[..., :, None] * V.transpose(-2, -1))

    def collapse_l(self) -> Tensor:
        """diag(S) V^T [*many inner right]: the matrix without the rotation on its left."""
        return self.S[..., :, None] * self.V.transpose(-2, -1)

    def collapse_r(self) -> Tensor:
        """U diag(S) [*many left inner]."""
        return self.U * self.S[..., None, :]

    def get_corner(self, k: int = 3) -> Tensor:
        """The first k rows and columns, of the first k matrices along each axis."""
        corner = self.A[..., :k, :] @ self.B[..., :, :k]
        return corner[tuple(slice(k) for _ in range(corner.ndim))]

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """With one more leading axis."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"


def _kept(place: Any) -> Any:
    return slice(place, place + 1 or None) if isinstance(place, int) else place
