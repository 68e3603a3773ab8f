"""The decoder: one file for each part, to be read from norm to causal_lm.

Names of arrays end in their axes, a letter each, and einsums use the same letters, here and in the other packages:

B batch, T time of queries and new tokens, S time of keys and slots of a cache, D hidden size, F feed-forward size,
N query heads, K key/value heads, G = N / K query heads of one kv head, H head size, V vocabulary, L layers, E experts,
R rank of an adapter, M rows if several axes, such as B and T, are one. A lower-case k counts the experts of a token, a
lower-case n counts devices or blocks, and 1 or 2 stands for an axis of that length.

A few letters are needed only in some files: A tokens of an answer (inference), C capacity of an exchange round
(exchange), J rows that came in (exchange) or rows of a block (grouped_matmul), P = M · k pairs of row and choice
(experts), Q = G · T queries of one kv head (softmax), U time of a chunk (loss), X features of any kind (linear,
pruning).
"""
