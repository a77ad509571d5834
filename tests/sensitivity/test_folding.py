"""Laws of folding: products are kept, exactly where rows suffice and in the mean where they do not."""

from __future__ import annotations

import torch

from apportion.sensitivity.folding import fold, row_count


def projections(samples: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(strips, samples, 2, 3, generator=generator) for strips in (4, 5)]


def gram(rows: torch.Tensor) -> torch.Tensor:
    flat = rows.flatten(1).double()
    return flat.T @ flat


def plain(effects: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([effect.permute(1, 2, 0, 3).flatten(0, 1) for effect in effects], 1)


def test_products_are_exact_where_there_are_rows_enough() -> None:
    effects = projections(6)
    rows = row_count(6, 2, 512)
    assert rows == 12
    # Sums of a dozen products of float32 numbers of size 1.
    torch.testing.assert_close(gram(fold(effects, 0, rows, 0)), gram(plain(effects)), rtol=1e-5, atol=1e-5)


def test_pieces_add_up_to_the_whole() -> None:
    effects = projections(20)
    whole = fold(effects, 0, 8, 3)
    pieces = [
        fold([effect[:, part] for effect in effects], part.start, 8, 3)
        for part in (slice(0, 7), slice(7, 20))
    ]
    torch.testing.assert_close(pieces[0] + pieces[1], whole, rtol=0, atol=1e-5)


def test_products_keep_their_mean_where_rows_are_shared() -> None:
    effects = projections(40)
    folded = torch.stack([gram(fold(effects, 0, 16, seed)) for seed in range(400)])
    expected = gram(plain(effects))
    error = folded.std(0) / 400**0.5
    # Of 27 x 27 products none strays by five standard errors unless the mean is off.
    assert bool(((folded.mean(0) - expected).abs() <= 5 * error + 1e-3).all())
    # A strip's own squares vary too, so the rows are truly shared.
    assert float(error.diagonal().min()) > 0


def test_samples_of_even_and_odd_number_share_no_row() -> None:
    effects = projections(30)
    even = [effect.clone() for effect in effects]
    for effect in even:
        effect[:, 1::2] = 0
    folded = fold(even, 0, 8, 0)
    assert bool((folded[4:] == 0).all())
    assert bool((folded[:4] != 0).all())


def test_signs_are_independent_of_what_directions_are_drawn_from() -> None:
    ones = [torch.ones(1, 4000, 1, 1)]
    signs = fold(ones, 0, row_count(4000, 1, 4000), 5).flatten()
    position = torch.arange(4000)
    signs = signs[(position % 2) * 2000 + position // 2]
    drawn = [torch.rand(1, generator=torch.Generator().manual_seed(5 * 1_000_003 + n)) for n in range(4000)]
    others = torch.where(torch.cat(drawn) < 0.5, -1.0, 1.0)
    # The mean of so many products of independent signs is within five standard errors of zero.
    assert abs(float((signs * others).mean())) < 5 / 4000**0.5
    assert abs(float(signs.mean())) < 5 / 4000**0.5
