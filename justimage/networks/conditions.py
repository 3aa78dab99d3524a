"""Conditions: what a network is told besides the state and the time.

A value y of a condition is a dictionary of named tensors, batch first. It comes from the data, passes through the rest
of the library unread, and is understood here alone: a condition says what it needs, what "none" is, how it is dropped
in training, and how it reaches the network.

| kind   | value                                              | none               | reaches the network as       |
|--------|----------------------------------------------------|--------------------|------------------------------|
| labels | (B,) whole numbers                                 | num_classes        | a vector added to the time's |
| vector | (B, F) numbers                                     | NaN                | a vector added to the time's |
| tokens | (B, L, F) numbers; NAME_mask (B, L), True: present | a mask without any | tokens in the sequence       |
| planes | (B, P, *S) numbers on the grid, NaN where unknown  | NaN everywhere     | channels beside the patches  |
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.networks.limits import MOST_FEATURES, MOST_TOKENS

Value = dict[str, Tensor]  # y: named tensors, batch first
TOLD = "told"  # the name, beside those of the parts, of what a network has said that time and condition come to


@dataclass(frozen=True)
class Part:
    """One part of a condition other than labels: what the data must give under this name.

    Raises ValueError for an unknown kind, an invalid name, fewer than one feature, or absurdly many.
    """

    name: str
    kind: str
    features: int
    """Numbers of a vector or of each token; channels of planes."""
    length: int = 0
    """Most tokens in a sequence."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no condition of kind {self.kind!r}; there are {', '.join(KINDS)}")
        if not self.name.isidentifier() or self.name in ("labels", TOLD) or self.name.endswith("_mask"):
            raise ValueError(
                f"a condition cannot be called {self.name!r}; use letters, digits and underscores (`labels`, `{TOLD}` "
                "and names ending in `_mask` are taken)"
            )
        if self.features < 1 or (self.kind == "tokens" and self.length < 1):
            raise ValueError(f"the condition {self.name!r} needs at least one feature, and tokens a length: {self}")
        if not (self.features <= MOST_FEATURES and 0 <= self.length <= MOST_TOKENS):
            raise ValueError(
                f"the condition {self.name!r} has {self.features} features and the length {self.length}; at most "
                f"{MOST_FEATURES:,} features and {MOST_TOKENS:,} tokens are possible"
            )


def parts(values: Any) -> tuple[Part, ...]:
    """Parts as they are, or as JSON holds them.

    Raises TypeError for fields that a part does not have, and ValueError where two parts share a name.
    """
    found = tuple(each if isinstance(each, Part) else Part(**each) for each in values)
    names = [part.name for part in found]
    if len(set(names)) != len(names):
        raise ValueError(f"two conditions share a name: {', '.join(names)}")
    return found


class Reach(NamedTuple):
    """What a value becomes inside a network of width D; None where there is nothing of the kind."""

    vector: Tensor | None = None
    """(B, D), added to the time embedding."""
    tokens: Tensor | None = None
    """(B, K, D), joining the sequence."""
    mask: Tensor | None = None
    """(B, K) bool, the tokens attended to; None: all."""
    planes: Tensor | None = None
    """(B, P, *S), beside the channels of the state."""


@runtime_checkable
class Condition(Protocol):
    """What the rest of the library asks of `net.condition`. A network without one is unconditional."""

    @property
    def needs(self) -> tuple[tuple[str, str, int, int], ...]:
        """(name, kind, features, length) of all that the data must give; of labels, features are the classes."""
        ...

    def null(self, count: int, size: tuple[int, ...], device: torch.device) -> Value | None:
        """The value that means "no condition", for `count` samples of this size; None if there never is one."""
        ...

    def drop(self, y: Value, draws: Tensor, rate: float) -> Value:
        """y with a share `rate` of its samples replaced by the null value: draws (B,) are uniform in (0, 1)."""
        ...


def replace_rows(y: Value, null: Value, rows: Tensor) -> Value:
    """y with the rows (B,) bool taken from null: the usual way to drop a condition."""
    return {name: torch.where(rows.view(-1, *[1] * (each.ndim - 1)), null[name], each) for name, each in y.items()}


def labels_as_value(y: Value | Tensor | None) -> Value:
    """Labels (B,) alone are a value too; None is the empty value."""
    return {} if y is None else {"labels": y} if isinstance(y, Tensor) else y


class VectorPart(nn.Module):
    """A vector (B, F) -> (B, D): two linear maps; a learned vector in place of NaN."""

    def __init__(self, part: Part, width: int):
        super().__init__()
        self.part = part
        self.hidden = nn.Linear(part.features, width)
        self.out = nn.Linear(width, width)
        self.none = nn.Parameter(torch.empty(width))

    def null(self, count: int, size: tuple[int, ...], device: torch.device) -> Value:
        """NaN: no value."""
        return {self.part.name: torch.full((count, self.part.features), torch.nan, device=device)}

    def forward(self, y: Value) -> Reach:
        value = y[self.part.name]
        known = value.nan_to_num().to(self.hidden.weight.dtype)
        embedded = self.out(F.silu(self.hidden(known)))
        return Reach(vector=torch.where(value.isnan().any(-1, keepdim=True), self.none.to(embedded.dtype), embedded))


class TokensPart(nn.Module):
    """Tokens (B, L, F) with a mask -> (B, L, D): one linear map and learned positions; masked ones are not attended."""

    def __init__(self, part: Part, width: int):
        super().__init__()
        self.part = part
        self.embedding = nn.Linear(part.features, width)
        self.positions = nn.Parameter(torch.empty(part.length, width))

    def null(self, count: int, size: tuple[int, ...], device: torch.device) -> Value:
        """No token is present."""
        shape = (count, self.part.length)
        return {
            self.part.name: torch.zeros(*shape, self.part.features, device=device),
            f"{self.part.name}_mask": torch.zeros(shape, dtype=torch.bool, device=device),
        }

    def forward(self, y: Value) -> Reach:
        value, mask = y[self.part.name], y[f"{self.part.name}_mask"]
        value = torch.where(mask[..., None], value, 0)  # NaN in absent tokens would spread
        tokens = self.embedding(value.to(self.embedding.weight.dtype)) + self.positions[: value.shape[1]]
        return Reach(tokens=tokens, mask=mask)


class PlanesPart(nn.Module):
    """Planes (B, P, *S) -> (B, 2 P, *S): their values, 0 where unknown, and whether they are known."""

    def __init__(self, part: Part, width: int):
        super().__init__()
        self.part = part

    def null(self, count: int, size: tuple[int, ...], device: torch.device) -> Value:
        """NaN: known nowhere."""
        return {self.part.name: torch.full((count, self.part.features, *size), torch.nan, device=device)}

    def forward(self, y: Value) -> Reach:
        value = y[self.part.name]
        return Reach(planes=torch.cat((value.nan_to_num(), (~value.isnan()).to(value.dtype)), 1))


KINDS: dict[str, type[nn.Module]] = {"vector": VectorPart, "tokens": TokensPart, "planes": PlanesPart}


def _module_name(name: str) -> str:
    """The name itself, unless torch's modules have a method of that name (`type`, `half`, `values`)."""
    return f"part-{name}" if hasattr(nn.ModuleDict(), name) else name


class Conditions(nn.Module):
    """Labels and any other parts together, for a network of width D (a `Condition`).

    Vectors are summed. With `context` > 0 the sum is also placed at that many learned positions in the sequence, the
    in-context tokens of Table 4, arXiv 2511.13720; tokens of other parts follow them. All parts are dropped together.
    """

    def __init__(self, num_classes: int, others: tuple[Part, ...], context: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Parameter(torch.empty(num_classes + 1, width)) if num_classes else None
        self.positions = nn.Parameter(torch.empty(context, width)) if context else None
        self.parts = nn.ModuleDict({_module_name(part.name): KINDS[part.kind](part, width) for part in others})
        self._others = others

    @property
    def needs(self) -> tuple[tuple[str, str, int, int], ...]:
        """See `Condition`."""
        labels = (("labels", "labels", self.num_classes, 0),) if self.num_classes else ()
        return labels + tuple((part.name, part.kind, part.features, part.length) for part in self._others)

    @property
    def planes(self) -> int:
        """Channels of all planes as they reach the network."""
        return sum(2 * part.features for part in self._others if part.kind == "planes")

    @property
    def longest(self) -> int:
        """Most tokens that join the sequence."""
        context = 0 if self.positions is None else len(self.positions)
        return context + sum(part.length for part in self._others)

    def null(self, count: int, size: tuple[int, ...], device: torch.device) -> Value | None:
        """See `Condition`."""
        if not self.needs:
            return None
        labels = {"labels": torch.full((count,), self.num_classes, device=device)} if self.num_classes else {}
        for part in self.parts.values():
            labels |= part.null(count, size, device)  # type: ignore[operator]
        return labels

    def drop(self, y: Value, draws: Tensor, rate: float) -> Value:
        """See `Condition`."""
        if not self.needs:
            return y
        planes = next((tuple(y[part.name].shape[2:]) for part in self._others if part.kind == "planes"), ())
        null = self.null(len(draws), planes, draws.device)
        return y if null is None else replace_rows(y, null, draws < rate)

    def forward(self, y: Value | Tensor | None, like: Tensor) -> Reach:
        """y, and like (B, D) the time embedding -> what reaches the network. ValueError where a part is missing."""
        y = labels_as_value(y)
        missing = [name for name, *_ in self.needs if name not in y]
        if missing:
            null = f"; the null label is {self.num_classes}" if "labels" in missing else ""
            raise ValueError(f"this network is conditional, and y lacks {', '.join(missing)}{null}")
        reaches = [part(y) for part in self.parts.values()]
        vector = torch.zeros_like(like) if self.table is None else F.embedding(y["labels"], self.table)
        for reach in reaches:
            vector = vector if reach.vector is None else vector + reach.vector
        context = None if self.positions is None else vector[:, None] + self.positions
        sequences = [(reach.tokens, reach.mask) for reach in reaches if reach.tokens is not None]
        planes = [reach.planes for reach in reaches if reach.planes is not None]
        together = torch.cat(planes, 1) if planes else None
        if not sequences:
            return Reach(vector, context, None, together)
        tokens, masks = [each for each, _ in sequences], [mask for _, mask in sequences]
        if context is not None:
            tokens = [context.to(tokens[0].dtype), *tokens]
            masks = [torch.ones(context.shape[:2], dtype=torch.bool, device=context.device), *masks]
        return Reach(vector, torch.cat(tokens, 1), torch.cat(masks, 1), together)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fill what is not a linear map: normal, standard deviation 0.02."""
        for weight in (self.table, self.positions):
            if weight is not None:
                nn.init.normal_(weight, std=0.02, generator=generator)
        for part in self.parts.values():
            for weight in part.parameters(recurse=False):
                nn.init.normal_(weight, std=0.02, generator=generator)
