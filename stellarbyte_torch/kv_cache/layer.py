"""One layer of a pruned cache: attention to the keys that it holds, and the choice of those that stay."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.evidence import Evidence, Rotation
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.selection import keep
from stellarbyte_torch.kv_cache.heads import grouped, kv_heads_of
from stellarbyte_torch.kv_cache.masks import mask_of_keys, real_tokens
from stellarbyte_torch.kv_cache.observed import AT_ONCE, Observed
from stellarbyte_torch.kv_cache.slots import Slots
from stellarbyte_torch.kv_cache.stock import IMPLEMENTATION, noted


class PrunedLayer(CacheLayerMixin):
    """The keys and values of at most `size` tokens of each row and kv head.

    Args:
        size: slots of each head.
        policy: what scores the keys.
        rotation: what turns the model's queries and keys; None without rotary positions.

    Attributes:
        record_past: whether the last call may be taken back by `crop`: keys are dropped only after that.
    """

    is_croppable = True
    supports_early_init = False

    def __init__(self, size: int, policy: Policy, rotation: Callable[[Tensor], Rotation] | None) -> None:
        super().__init__()
        self.size, self.policy, self.rotation = size, policy, rotation
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.is_initialized = False
        self.slots: Slots | None = None
        self.observed = Observed(self.policy.needs, self.rotation)
        self._length = 0
        self._window: int | None = None
        self._has_begun = False
        self._is_awaited = False
        self._settle: Callable[[int], None] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the arrays."""
        self.slots = Slots(self.size, key_states, value_states, "attention" in self.policy.needs)
        self._first_B = torch.full((len(key_states),), -1, device=key_states.device)
        self._offset_B = torch.zeros_like(self._first_B)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Gives new keys and values back to a model of Transformers, whose attention then calls `attend` with them.

        Raises:
            UserError: it did not do so with those before.
        """
        if self._is_awaited:
            raise UserError(
                f"attention has left out a pruned cache: call model.set_attn_implementation({IMPLEMENTATION!r}) before "
                "it is made, and leave that so"
            )
        self._is_awaited = True
        return noted(key_states, self), value_states

    def attend(
        self,
        attention: Callable[..., tuple[Tensor, Tensor | None]],
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        position_ids: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from new tokens to those that are held and to one another: output [B, T, N, H], and weights.

        A call of one token makes room for it before, a longer one attends in full and drops after.

        Args:
            attention: Transformers' function for that.
            module: the attention module.
            query, key, value: of the new tokens, [B, N, T, H] and [B, K, T, H].
            attention_mask: [B, 1, T, S], a column for each token of the rows; None: causal.
            position_ids: [1 or B, T].
            options: what else `attention` takes.
        """
        self._is_awaited = False
        self.settle()
        self._begin()
        if self.slots is None:
            self.lazy_initialization(key, value)
        assert self.slots is not None
        slots, number, (B, _, T, _) = self.slots, self._length, query.shape
        self._window = options.get("sliding_window")
        real_BT = real_tokens(attention_mask, number, T)
        real_BT = None if real_BT is None else real_BT.expand(B, T)
        index_BT = self._number_tokens(number, real_BT, (B, T))
        self._scaling = options["scaling"]
        if position_ids is not None and (T > 1 or number == 0):  # they rise by one with each token
            self.add_up()
            self._offset_B = (position_ids[:, -1] - (number + T - 1)).expand(B)
        if slots.used + T > slots.end:
            self._make_room(T == 1, index_BT)
        slots.append(key, value, index_BT, is_padded=real_BT is not None)
        self._length += T

        mask_BKTS = attention_mask
        if not slots.in_columns and not (attention_mask is None and T == 1 and slots.is_full):
            mask_BKTS = mask_of_keys(attention_mask, slots.index_BKC[:, :, : slots.used], number, T)
        seen = self._seen(kv_heads_of(module, query.shape[1]), getattr(module, "is_regular", True), mask_BKTS, T)
        output, weights = attention(module, query, *seen, position_ids=position_ids, **options)

        q_BKGTH = grouped(query, module) if self.policy.needs else None
        mask_BKTS = None if attention_mask is None else mask_BKTS
        self._settle = partial(self._observe_and_drop, q_BKGTH, index_BT, mask_BKTS)
        if not self.record_past:
            self.settle()
        return output, weights

    def settle(self, taken_back: int = 0) -> None:
        """Ends the last call: takes note of its queries, those `taken_back` left out, and drops what is too much."""
        if self._settle is not None:
            settle, self._settle = self._settle, None
            settle(taken_back)

    def add_up(self, mask: Tensor | None = None) -> None:
        """Adds up the queries that wait, before slots move or positions begin anew: see Observed."""
        assert self.slots is not None
        self.observed.add_up(self._scaling, self._offset_B, self.slots, mask)

    @property
    def index_BKC(self) -> Tensor:
        """The numbers of the tokens that each head holds; -1: none."""
        assert self.slots is not None
        return self.slots.index_BKC[:, :, : self.slots.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The columns of the mask for so many new tokens, and the number of the first: one for each token so far."""
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        """The number of tokens that the layer has read."""
        return self._length

    def get_max_length(self) -> int:
        """None: -1, as rows may have any length."""
        return -1

    def activate_past_recording(self) -> None:
        """See `record_past`."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last tokens; a number up to 0, as in Transformers. Keys that were dropped do not return.

        Raises:
            ValueError: the number is above 0.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}) is above 0: give minus the number of tokens to take back")
        self._begin()
        gone = min(-tokens_to_remove, self._length)
        self._length -= gone
        if self.slots is not None and gone:
            self.add_up()
            self.slots.drop_from(self._length)
        self.settle(gone)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Chooses rows, for beams."""
        self._choose_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        if self.slots is not None:
            self._choose_rows(torch.arange(len(self.slots.counts)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        if self.slots is not None:
            self._choose_rows(torch.arange(len(self.slots.counts))[indices.cpu()])

    def _begin(self) -> None:
        """Prepares the slots for a change, which `settle` ends."""

    def _choose_rows(self, rows: Tensor) -> None:
        if self.slots is None:
            return
        self.settle()
        self._begin()
        self.add_up()
        self.settle()
        rows = rows.to(self.slots.keys.device)

        def change(array: Tensor) -> Tensor:
            return array.index_select(0, rows)

        self.slots.each(change, rows.tolist())
        self.observed.each(change)
        self._first_B, self._offset_B = change(self._first_B), change(self._offset_B)

    def _seen(
        self, heads_N: list[int], is_regular: bool, mask_BKTS: Tensor | None, T: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask for query heads that read these kv heads; is_regular: by equally many each."""
        assert self.slots is not None
        slots, end = self.slots, self.slots.used
        # What no query sees any longer is left out, as Transformers' own cache of a window does: the same bits.
        window = self._window if slots.in_columns and mask_BKTS is not None else None
        places = slice(0 if window is None else max(0, end - window + 1 - T), end)
        keys, values = slots.keys[:, :, places], slots.values[:, :, places]
        if not is_regular:
            keys, values = keys[:, heads_N], values[:, heads_N]
        if mask_BKTS is None:
            return keys, values, None
        mask_BNTS = mask_BKTS if slots.in_columns else mask_BKTS[:, heads_N]
        return keys, values, mask_BNTS[..., places]

    def _number_tokens(self, number: int, real_BT: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """The numbers of new tokens, int [B, T], -1 for padding; takes note of where the rows begin."""
        numbers_T = torch.arange(number, number + shape[1], device=self._first_B.device)
        if real_BT is None:
            if not self._has_begun:
                self._first_B = self._first_B.where(self._first_B >= 0, number)
                self._has_begun = True
            return numbers_T.expand(shape)
        index_BT = numbers_T.where(real_BT, -1)
        earliest_B = numbers_T.where(real_BT, torch.iinfo(torch.long).max).amin(dim=1)
        begins_B = (self._first_B < 0) & real_BT.any(dim=1)
        self._first_B = earliest_B.where(begins_B, self._first_B)
        return index_BT

    def _make_room(self, is_one: bool, index_BT: Tensor) -> None:
        """Closes the gaps that padding leaves; for a call of one token, prunes the rows that are full."""
        assert self.slots is not None
        self.add_up()
        self.slots.close_gaps()
        coming_B = (index_BT >= 0).sum(dim=1)
        if is_one and max(map(sum, zip(self.slots.counts, coming_B.tolist(), strict=True))) > self.slots.end:
            self._prune(coming_B)

    def _observe_and_drop(self, q_BKGTH: Tensor | None, index_BT: Tensor, mask: Tensor | None, taken_back: int) -> None:
        """Takes note of a call's queries, and drops what is too much.

        mask: what the queries see of the slots, [B, K or 1, T, S]; None: all keys up to their own.
        """
        assert self.slots is not None
        T = index_BT.shape[1] - taken_back
        if T > 0 and q_BKGTH is not None:
            has_mask = mask is not None and "attention" in self.policy.needs
            if has_mask:
                self.add_up()
            self.observed.note(q_BKGTH[:, :, :, :T], index_BT[:, :T])
            if has_mask or self.observed.waiting >= AT_ONCE:
                self.add_up(mask[..., :T, : self.slots.used] if mask is not None else None)
        if self.slots.used > self.slots.end:
            self.add_up()
            self.slots.close_gaps()  # policies look at neighbours
            self._prune(None)

    def _prune(self, coming_B: Tensor | None) -> None:
        """Keeps what leaves room for `coming_B` tokens, by the rules of stellarbyte/kv_cache/selection.py.

        coming_B: None after a call of several tokens, which has stored them all.
        """
        assert self.slots is not None
        evidence, place = self._evidence()
        scores_BKS = self.policy.scores(evidence)
        self.slots.take(keep(scores_BKS, evidence.index_BKS, slots=self.size, coming_B=coming_B, **place))

    def _evidence(self) -> tuple[Evidence, dict[str, Any]]:
        """What the policy may know, and where the rows stand."""
        assert self.slots is not None
        place: dict[str, Any] = {
            "first_B": self._first_B.clamp(min=0),
            "length_B": torch.full_like(self._first_B, self._length),
            "window": self._window,
        }
        return self.observed.evidence(self.slots, **place, offset_B=self._offset_B), place
