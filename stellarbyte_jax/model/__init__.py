"""The decoder: one file for each part, to be read from norm to causal_lm.

Names of arrays end in their axes, a letter each, and einsums use the same letters:

B batch, T time of queries and new tokens, S time of keys and slots of a cache, D hidden size, F feed-forward size,
N query heads, K key/value heads, G = N / K query heads of one kv head, H head size, V vocabulary, L layers, E experts,
R rank of an adapter. A lower-case k counts the experts of a token, a lower-case n counts devices or blocks, and 1 or 2
stands for an axis of that length.

Inside one file: M = B · T rows and P = M · k pairs of row and choice (experts), Q = G · T queries (softmax), C the
capacity of a round and R rows that came in (exchange) or rows of a block (grouped_matmul), C channels (linear).
"""
