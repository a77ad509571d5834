"""First-order effect of the options of an embedding: what its rows do where tokens look them up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..allocator import LayerCut

__all__ = ["project_lookups"]

# Rows of perturbations are gathered in pieces that stay near the processor's cache.
GATHERED_FLOATS = 2**22


def project_lookups(ids: Tensor, cotangents: Sequence[Tensor], deltas: Tensor, cut: LayerCut) -> Tensor:
    """v of one use of an embedding, exactly and per strip.

    With id_t the token at place t and g_t the cotangent of its row,

        v[n, r, c, o] = sum over t with id_t = c of < g_t , dW(o)[c] >

    for an entry c as a strip; for a run of the width as a strip, the sum over all places of the products in
    that run.

    Parameters
    ----------
    ids : Tensor, shape (samples, ...)
        Token ids, of any type.
    cotangents : sequence of Tensor, each of shape (samples, ..., width)
        Of the looked up rows, one per draw.
    deltas : Tensor, shape (entries, options, width)

    Returns
    -------
    Tensor, shape (strips, samples, draws, options)
    """
    samples, width = len(ids), deltas.shape[2]
    options = deltas.shape[1]
    places = ids.reshape(samples, -1).long()
    strips = cut.strips
    result = deltas.new_zeros(samples, len(cotangents), strips, options)
    for sample, row in enumerate(places):
        for draw, cotangent in enumerate(cotangents):
            received = cotangent[sample].reshape(-1, width)
            step = max(1, GATHERED_FLOATS // (options * width))
            for start in range(0, len(row), step):
                part = slice(start, start + step)
                products = deltas[row[part]] * received[part, None]
                if cut.inputs:
                    result[sample, draw] += products.sum(0).view(options, strips, cut.inputs).sum(2).T
                else:
                    result[sample, draw].index_add_(0, row[part], products.sum(2))
    return result.permute(2, 0, 1, 3)
