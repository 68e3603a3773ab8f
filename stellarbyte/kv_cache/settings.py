"""What a user says of a pruned cache: the budget, the policy, and how layers share it."""

from dataclasses import dataclass

from stellarbyte.errors import UserError, shown
from stellarbyte.kv_cache.budgets import layer_slots
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.selection import FEWEST_SLOTS


@dataclass(frozen=True)
class KVBudget:
    """The slots of each kv head of each layer, on average: a number, or a share of the tokens that come.

    Exactly one of the two is set.
    """

    slots: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "KVBudget":
        """The budget of a text such as 512 or 25%. Raises UserError: it is neither, or is too small."""
        number = text.strip().removesuffix("%")
        try:
            value = float(number) if text.strip().endswith("%") else int(number)
        except ValueError:
            raise UserError(
                f"--kv-budget {shown(text)} is no number of tokens and no share: write 512 or 25%"
            ) from None
        if isinstance(value, float):
            if not 0 < value <= 100:
                raise UserError(f"--kv-budget {text} must be above 0% and at most 100%")
            return cls(share=value / 100)
        if value < FEWEST_SLOTS:
            raise UserError(
                f"--kv-budget {text} is too small: the first tokens and the newest are always kept; give at least "
                f"{FEWEST_SLOTS}"
            )
        return cls(slots=value)

    def of(self, tokens: int) -> int:
        """The slots for a text of so many tokens, prompt and answer; a share gives at least FEWEST_SLOTS."""
        if self.slots is not None:
            return self.slots
        assert self.share is not None
        return max(FEWEST_SLOTS, int(self.share * tokens))


@dataclass(frozen=True)
class KVPruning:
    """A pruned cache: its budget, its policy, and one of budgets.SHAPES."""

    budget: KVBudget
    policy: Policy
    shape: str = "uniform"

    @property
    def shared(self) -> bool:
        """Whether the heads of a layer share its slots."""
        return self.shape == "entropy"

    def layer_slots(self, tokens: int, layers: int, window: int | None = None) -> tuple[int, ...] | None:
        """The slots of each layer for a text of so many tokens; None if nothing that is ever seen has to be dropped."""
        slots = self.budget.of(tokens)
        seen = tokens if window is None else min(window, tokens)
        return None if slots >= seen else layer_slots(self.shape, slots, layers)
