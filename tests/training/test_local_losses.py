# Licensed under the Apache License, Version 2.0.
"""`regulariser.local_loss`: what of a batch each loss is given, and that runs train with it."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_tier.data import load_pairs
from modeling_tier.training import train
from modeling_tier.training.building import build_model, build_processor
from modeling_tier.training.local_loss import LocalLoss, sentence_inputs
from modeling_tier.training.local_losses import LOCAL_LOSSES
from modeling_tier.training.options import RegulariserOptions
from modeling_tier.training.pairs_of_batch import Pairs, block_shape
from tests.training.test_training import tiny


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A model in float64, four texts of one to several sentences, and the inputs of the four pairs."""
    config = tiny(tmp_path_factory.mktemp("local_losses"))
    pairs = load_pairs("synthetic", "train", num_images=40, image_size=32, section="both")
    processor = build_processor(config, pairs)
    torch.manual_seed(0)
    model = build_model(config, processor).double().eval()
    texts = ["1. There is cardiomegaly. 2. No edema.", "Left pleural effusion.", "Edema.  Edema. No effusion.", "?"]
    inputs = processor(text=texts, images=[pairs[i]["image"] for i in range(4)])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    return model, processor, texts, dict(inputs)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def both_ways(scores: np.ndarray) -> float:
    """CLIP's loss of a square of scores, by loops."""
    total = 0.0
    for i in range(len(scores)):
        total += np.log(np.exp(scores[i]).sum()) + np.log(np.exp(scores[:, i]).sum()) - 2 * scores[i, i]
    return total / len(scores) / 2


def loss_of(model, name: str, weight: float, inputs: dict, sentences: dict | None = None) -> tuple[float, object]:
    batch = inputs | (sentences or {})
    local_loss = LocalLoss.of_batch(
        RegulariserOptions(local_loss=name, local_weight=weight), batch, torch.device("cpu")
    )
    assert set(batch) == set(inputs)  # the encoders take no sentences
    out = model(**batch, return_loss=True, local_loss=local_loss)
    before = model(**inputs, return_loss=True)
    assert float(out.loss.detach()) == pytest.approx(before.loss.item() + out.local_loss.item(), abs=1e-9)
    return float(out.local_loss.detach()), out


def test_special_tokens_and_padding_are_told_apart(embedded):
    """FILIP counts all tokens of a text, GLoRIA those alone that are no special ones."""
    model, processor, texts, inputs = embedded
    filip, out = loss_of(model, "filip", 0.5, inputs)
    gloria, _ = loss_of(model, "gloria", 0.5, inputs)
    tokens = out.token_embeds.detach().float().numpy().astype(np.float64)
    patches = out.patch_embeds.detach().float().numpy().astype(np.float64)
    scale = model.logit_scale.exp().item()
    by_token, by_patch, words = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    for i, text in enumerate(texts):
        length = len(processor.tokenizer(text)["input_ids"])  # [CLS] ... [SEP]
        for j in range(4):
            cosines = tokens[i, :length] @ patches[j].T
            by_token[i, j] = scale * np.mean([max(row) for row in cosines])
            by_patch[i, j] = scale * np.mean([max(column) for column in cosines.T])
            likeness = []
            for k in range(length) if text == "?" else range(1, length - 1):  # "?" is an unknown word alone
                weights = np.exp(4 * cosines[k]) / np.exp(4 * cosines[k]).sum()
                likeness.append(unit(weights @ patches[j]) @ tokens[i, k])
            words[i, j] = 10 * np.log(np.sum(np.exp(5 * np.array(likeness))))
    rows = [np.log(np.exp(by_token[i]).sum()) - by_token[i, i] for i in range(4)]
    columns = [np.log(np.exp(by_patch[:, i]).sum()) - by_patch[i, i] for i in range(4)]
    assert filip == pytest.approx(0.5 * (np.mean(rows) + np.mean(columns)) / 2, abs=1e-5)
    assert gloria == pytest.approx(0.5 * both_ways(words), abs=1e-5)


def test_every_sentence_is_embedded_by_itself_and_belongs_to_its_image(embedded):
    """A contrast of all sentences, by loops; equal ones of a text are one, numbers of a list are dropped."""
    model, processor, texts, inputs = embedded
    loss, out = loss_of(model, "sentences", 0.3, inputs, sentence_inputs(texts, processor))
    split = [["There is cardiomegaly.", "No edema."], ["Left pleural effusion."], ["Edema.", "No effusion."], ["?"]]
    images = out.image_embeds.detach().float().numpy().astype(np.float64)
    scores, owners = [], []
    for i, own in enumerate(split):
        for sentence in own:
            alone = processor(text=[sentence])
            text = unit(model.get_text_features(**alone).pooler_output[0].detach().numpy())
            scores.append(model.logit_scale.exp().item() * images @ text)
            owners.append(i)
    scores, owners = np.array(scores), np.array(owners)
    values = []
    for i in range(4):
        to_image, to_text = [], []
        for row in np.flatnonzero(owners == i):
            to_image.append(np.log(np.exp(scores[row]).sum()) - scores[row, i])
            rivals = np.exp(scores[owners != i, i]).sum() + np.exp(scores[row, i])
            to_text.append(np.log(rivals) - scores[row, i])
        values.append((np.mean(to_image) + np.mean(to_text)) / 2)
    assert loss == pytest.approx(0.3 * np.mean(values), abs=1e-5)


FAST = ("vl_cabs_sentences",)


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in sorted({*LOCAL_LOSSES} - {*FAST}))]
)
def test_a_run_trains_with_it(name, tmp_path):
    options = ["--training.epochs=1", "--training.log_every=1", f"--regulariser.local_loss={name}"]
    train(tiny(tmp_path, *options, "--regulariser.local_weight=0.25"))
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "loss" in step]
    assert len(steps) == 6 and len({step["local_loss"] for step in steps}) == 6
    for step in steps:
        terms = 0.2 * step["token_entropy"] + 0.05 * step["patch_entropy"] + step["local_loss"]
        assert step["loss"] == pytest.approx(step["contrastive_loss"] + terms, abs=1e-4)


def pairs_of(texts: int, tokens: int, patches: int, width: int) -> Pairs:
    """Of random embeddings, without padding; each text has two sentences."""
    rng = torch.Generator().manual_seed(texts)

    def unit_rows(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, width, generator=rng), dim=-1)

    mask, owners = torch.ones(texts, tokens, dtype=torch.bool), torch.arange(texts).repeat_interleave(2)
    embeds = unit_rows(texts), unit_rows(texts), unit_rows(texts, tokens), unit_rows(texts, patches)
    return Pairs(*embeds, None, mask, mask, torch.tensor(10.0), unit_rows(2 * texts), owners)


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest result of an operation has."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.values = max([self.values, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize(("patches", "width"), [(16, 9), (9, 16)])
@pytest.mark.parametrize("name", sorted(LOCAL_LOSSES))
def test_no_tensor_is_larger_than_allowed_and_blocks_change_nothing(name, patches, width):
    """Every operation is watched; loss and gradient are those without blocks."""
    pairs = pairs_of(texts=20, tokens=5, patches=patches, width=width)
    given = max(tensor.numel() for tensor in (pairs.patches, pairs.tokens @ pairs.patches.transpose(1, 2)))
    results, largest = [], []
    for max_values in (None, given):
        tensors = {key: getattr(pairs, key).clone().requires_grad_() for key in ("text", "tokens", "patches")}
        tensors["sentences"] = pairs.sentences.clone().requires_grad_()
        with LargestTensor() as seen:
            loss = LOCAL_LOSSES[name](dataclasses.replace(pairs, **tensors, max_values=max_values), 0.1)
            grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        results.append((loss.detach(), [grad for grad in grads if grad is not None]))
        largest.append(seen.values)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-7)
    assert largest[1] <= given
    in_blocks = name not in ("steep", "sparc", "sentences")  # these lay no patches beside other texts
    assert (largest[0] > given) == in_blocks


def test_blocks_are_as_few_as_their_tensors_allow():
    def shape(texts: int, images: int, values: int, **limits) -> tuple[int, int]:
        own, others = pairs_of(texts, 1, 1, 1), pairs_of(images, 1, 1, 1)
        return block_shape(dataclasses.replace(own, **limits), others, values)

    assert shape(256, 256, 512) == (256, 256)
    assert shape(256, 256, 512, max_values=512 * 256**2) == (256, 256)
    assert math.prod(shape(256, 256, 512, max_values=512 * 256**2 - 1)) == 128 * 256  # two of the same size
    assert math.prod(shape(512, 512, 512, max_values=512 * 512 * 256)) == 512 * 256
    assert math.prod(shape(16, 512, 100, max_values=100 * 16 * 128)) == 16 * 128
    assert math.prod(shape(512, 16, 100, max_values=100 * 16 * 128)) == 16 * 128
    assert shape(5, 7, 2**20, max_values=10) == (1, 1)  # never less than a pair
    assert shape(10, 30, 512, max_values=10**9, chunk_size=16) == (10, 16)
    for texts, images, values, limit in ((7, 11, 3, 50), (12, 12, 5, 100), (9, 30, 2, 61), (30, 9, 1, 17)):
        rows, columns = shape(texts, images, values, max_values=limit)
        assert rows * columns * values <= limit
        sizes = [(r, c) for r in range(1, texts + 1) for c in range(1, images + 1) if r * c * values <= limit]
        fewest = min(math.ceil(texts / r) * math.ceil(images / c) for r, c in sizes)
        assert math.ceil(texts / rows) * math.ceil(images / columns) == fewest


def test_the_loss_of_a_run_has_the_limit(embedded, monkeypatch):
    model, _, _, inputs = embedded
    out, options = model(**inputs), RegulariserOptions(local_loss="gloria", local_weight=0.5)
    losses, largest = [], []
    for limit in (10**9, 1_000):
        monkeypatch.setattr("modeling_tier.training.local_loss.MAX_VALUES", limit)
        with LargestTensor() as seen:
            losses.append(LocalLoss.of_batch(options, dict(inputs), torch.device("cpu"))(model, out).item())
        largest.append(seen.values)
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert largest[1] < largest[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regulariser.local_loss=flip"], "regulariser.local_loss must be one of"),
        (["--regulariser.local_loss=sentences", "--training.chunk_size=4"], "delete training.chunk_size"),
        (["--regulariser.local_loss=filip", "--regulariser.local_weight=0"], "local_weight must be positive"),
        (["--regulariser.local_loss=filip", "--regulariser.local_weight=-1"], "local_weight must be at least 0"),
    ],
)
def test_options_that_cannot_work(options, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(tiny(tmp_path, *options))
