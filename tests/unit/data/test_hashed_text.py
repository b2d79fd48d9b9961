"""The offline text encoder: deterministic, order-aware, with one row a word."""

import torch

from anomaly_lib.backbones.hashed_text import EMBED_DIM, HashedTextEncoder


def test_same_text_same_vector_and_close_texts_are_closer() -> None:
    texts = [
        "NaCl is bonded to six Cl atoms",
        "NaCl is bonded to four Cl atoms",
        "quenched in water",
        "water in quenched",
    ]
    found = HashedTextEncoder(("pooled",)).encode_texts(texts)["pooled"]
    again = HashedTextEncoder(("pooled",)).encode_texts(texts[:1])["pooled"]
    torch.testing.assert_close(found[:1], again)
    torch.testing.assert_close(found.norm(dim=1), torch.full((4,), 16.0))
    similarity = torch.nn.functional.normalize(found) @ torch.nn.functional.normalize(found).T
    assert similarity[0, 1] > 0.5 > similarity[0, 2]
    assert similarity[2, 3] < 0.999  # word pairs: order counts


def test_tokens_start_with_the_whole_text_and_are_masked() -> None:
    encoder = HashedTextEncoder(("tokens", "pooled"))
    found = encoder.encode_texts(["one two three", "one"], max_length=3)
    assert found["tokens"].shape == (2, 3, EMBED_DIM)
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    torch.testing.assert_close(found["tokens"][:, 0], found["pooled"])
    torch.testing.assert_close(found["tokens"][0, 1], found["tokens"][1, 1])
    assert float(found["tokens"][1, 2].abs().sum()) == 0
