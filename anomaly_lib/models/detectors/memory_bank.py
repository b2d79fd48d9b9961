"""A bank of normal patch features that can be searched, grown, cut, merged and written down."""

from typing import IO, Any

import torch
from torch import Tensor, nn

from anomaly_lib.ops import half_squared_norms, nearest_neighbours
from anomaly_lib.ops.half_search import HalfBank, half_products_are_fast, nearest_by_half

WORTHWHILE = 1 << 22  # queries x rows from which bfloat16 products pay


class MemoryBank(nn.Module):
    """Rows [M, D] and, for each, the number [M] of the image it came from, so that images can be taken out again."""

    rows: Tensor
    owners: Tensor
    half_norms: Tensor
    table: Tensor

    def __init__(self, rows: Tensor | None = None, owners: Tensor | None = None) -> None:
        super().__init__()
        rows = torch.empty(0, 0) if rows is None else rows
        owners = torch.full((len(rows),), -1, device=rows.device) if owners is None else owners
        for name in ("rows", "owners"):
            self.register_buffer(name, torch.empty(0))
        for name in ("half_norms", "table"):  # both follow from the rows
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._hold(rows, owners)

    def _hold(self, rows: Tensor, owners: Tensor) -> None:
        if rows.dim() != 2 or owners.shape != rows.shape[:1]:
            raise ValueError(f"rows [M, D] and owners [M] expected, got {list(rows.shape)} and {list(owners.shape)}")
        self.rows, self.owners = rows.contiguous(), owners.long()
        self.half_norms = half_squared_norms(self.rows)
        self.table = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
        self.short: HalfBank | None = None  # made by the first search that is large enough

    def __len__(self) -> int:
        return len(self.rows)

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Distances and bank rows of the k nearest, [N, k] each."""
        if not len(self):
            raise ValueError("the memory bank is empty: fit the detector before it is asked")
        if k == 1 and not torch.compiler.is_compiling() and self._halves_pay(queries):
            self.short = self.short or HalfBank.of(self.rows)
            return nearest_by_half(queries, self.rows, self.short)
        return nearest_neighbours(queries, self.rows, min(k, len(self)), half_norms=self.half_norms)

    def search_others(self, queries: Tensor, numbers: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """`search` among the rows of other images: `numbers` [N] says which image each query is of."""
        own = self.owners.unique(return_counts=True)[1]
        others = len(self) - int(own.max()) if len(self) else 0
        if others < 1:
            raise ValueError("the memory bank holds no rows of other images")
        apart = (numbers.to(self.owners), self.owners)
        return nearest_neighbours(queries, self.rows, min(k, others), half_norms=self.half_norms, apart=apart)

    def _halves_pay(self, queries: Tensor) -> bool:
        plain = (
            queries.dtype == self.rows.dtype == torch.float32 and queries.device.type == "cpu" == self.rows.device.type
        )
        return plain and len(queries) * len(self) >= WORTHWHILE and half_products_are_fast()

    def neighbours_of(self, indices: Tensor, k: int) -> Tensor:
        """The k bank rows nearest to each given bank row, itself first: [N] -> [N, k]. Found once, then looked up."""
        k = min(k, len(self))
        if torch.compiler.is_compiling():  # an exported graph cannot search lazily: its table has been completed before
            return self.table[indices]
        if self.table.shape[1] != k:
            self.table = torch.full((len(self), k), -1, dtype=torch.long, device=self.rows.device)
        unknown = indices[self.table[indices, 0] < 0].unique()
        if len(unknown):
            found = self.search(self.rows[unknown], k)[1]
            # A duplicate row may come first at the same distance 0; the row itself leads, as it defines the weight.
            itself = found == unknown.unsqueeze(1)
            order = itself.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
            found = found.gather(1, order)
            found[:, 0] = unknown
            self.table[unknown] = found
        return self.table[indices]

    def complete_table(self) -> None:
        """Find the neighbours of every row that a search so far has left out (before an export)."""
        if self.table.shape[1]:
            self.neighbours_of(torch.arange(len(self), device=self.rows.device), self.table.shape[1])

    def add(self, rows: Tensor, owners: Tensor) -> None:
        """Append rows of further images."""
        if len(self) and rows.shape[1] != self.rows.shape[1]:
            raise ValueError(f"the bank holds vectors of {self.rows.shape[1]}, the new ones have {rows.shape[1]}")
        kept = self.rows if len(self) else rows[:0].to(rows)
        self._hold(torch.cat([kept, rows.to(kept)]), torch.cat([self.owners, owners.to(self.owners)]))

    def remove(self, owners: list[int]) -> int:
        """Drop every row of the given images; answers how many rows went."""
        gone = torch.isin(self.owners, torch.tensor(owners, device=self.owners.device))
        self._hold(self.rows[~gone], self.owners[~gone])
        return int(gone.sum())

    def without(self, owner: int) -> "MemoryBank":
        """The bank as it would be for someone who does not know this image's rows."""
        others = self.owners != owner
        return MemoryBank(self.rows[others], self.owners[others])

    def merged(self, other: "MemoryBank") -> "MemoryBank":
        """Both banks in one; the other's images are numbered after this one's."""
        shift = int(self.owners.max()) + 1 if len(self) else 0
        both = MemoryBank(self.rows, self.owners)
        both.add(other.rows, torch.where(other.owners >= 0, other.owners + shift, other.owners))
        return both

    def write(self, stream: IO[bytes]) -> None:
        """Write the bank as safetensors."""
        from safetensors.torch import save

        stream.write(save({"rows": self.rows.contiguous(), "owners": self.owners}))

    @classmethod
    def read(cls, stream: IO[bytes]) -> "MemoryBank":
        """A bank that `write` wrote."""
        from safetensors.torch import load

        content = load(stream.read())
        return cls(content["rows"], content["owners"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        rows, owners = state_dict.get(prefix + "rows"), state_dict.get(prefix + "owners")
        if rows is not None and owners is not None:  # a bank has the size it has: take the saved one's
            self._hold(rows.to(self.rows.device), owners.to(self.rows.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
