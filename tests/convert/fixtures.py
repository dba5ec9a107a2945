# Licensed under the Apache License, Version 2.0.
"""For `pytest_plugins`: small published models and their files."""

import pytest
import torch
from published import AuthorsModel, BiovilImage, CxrBert, cxr_bert, randomize, save_authors, word_tokenizer


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 96, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def biovil_files(tmp_path) -> tuple[BiovilImage, CxrBert, dict[str, str]]:
    """Both models, and where they lie."""
    image, text = randomize(BiovilImage()), cxr_bert(tmp_path / "cxr-bert")
    torch.save(image.state_dict(), tmp_path / "image.pt")
    return image, text, {"image_model": str(tmp_path / "image.pt"), "text_model": str(tmp_path / "cxr-bert")}


@pytest.fixture
def authors(tmp_path) -> tuple[AuthorsModel, dict[str, str]]:
    model = AuthorsModel(randomize(BiovilImage()), cxr_bert(tmp_path / "cxr-bert"))
    (tmp_path / "cxr-bert" / "pytorch_model.bin").unlink()  # of this folder, only the tokenizer and the configuration
    save_authors(tmp_path / "best_model.pt", model)
    return model, {"model": str(tmp_path / "best_model.pt"), "text_model": str(tmp_path / "cxr-bert")}


@pytest.fixture
def openai_tokenizer(tmp_path) -> str:
    """CLIP pads with its end token, but any padding does."""
    word_tokenizer("<pad>", "<end>", model_max_length=77).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")
