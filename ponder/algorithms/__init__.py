"""The algorithms of R1 and its successors as pure functions of tensors: no model, no files, no global state.

One shape convention holds in the whole folder:

    P  prompts of a step               G  samples of a prompt (the group size)
    B  sequences                       N  completion tokens of a micro-batch, all its sequences end to end

Per-token tensors are packed: flat, (N,), without padding. `sequence_ids` (N,) long names each token's sequence
within the micro-batch, 0 to B - 1; a sequence is never split over micro-batches. Losses are sums of per-token terms
times weights that were computed over the whole batch, so the losses of micro-batches add up to the batch's.

`docs/algorithm.md` is the guided tour.
"""
