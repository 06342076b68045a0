"""Parts of an ``Mllm`` taken from models of the store: their settings, their weights, the decoder's tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from rebus.data.tokenizer import BOS, EOS, Tokenizer
from rebus.errors import NotFoundError, invalid
from rebus.models.causal_lm import CausalLm, SpecialTokens
from rebus.models.dual_encoder import DualEncoder
from rebus.models.gated_cross_attention import GatedCrossAttentionConfig, unwrapped
from rebus.models.io import load_model
from rebus.models.mllm import Mllm
from rebus.models.vocabulary import with_vocabulary
from rebus.training.recipe import StartablePart

if TYPE_CHECKING:
    from rebus.training.tasks.new_mllm import NewMllmConfig

C = TypeVar("C", bound="NewMllmConfig")
_FIELD = "recipe.start_from"
STARTABLE: Mapping[str, StartablePart] = {
    "decoder": StartablePart(architectures=("causal-lm", "mllm"), settings=("decoder", "tokenizer")),
    "vision_encoder": StartablePart(architectures=("mllm", "dual-encoder"), settings=("encoder", "preprocess")),
    "connector": StartablePart(architectures=("mllm",), settings=("connector",)),
}


class Starts:
    """The models that an ``Mllm`` takes parts from, loaded; ``folders`` are by part, of ``STARTABLE`` models.

    ``tokenizer`` is the decoder's with our special tokens, None where the decoder is a new one.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        loaded = {folder: load_model(folder) for folder in set(folders.values())}
        self._models = {part: loaded[folder] for part, folder in folders.items()}
        self.tokenizer: Tokenizer | None = None
        self._added: list[str] = []
        if "decoder" in folders:
            self.tokenizer, self._added = _adopted(folders["decoder"])

    def settings(self, config: C) -> C:
        """The task's config with the settings of the parts that are taken."""
        changes: dict[str, Any] = {}
        for part, model in self._models.items():
            theirs: Any = model.config
            if part == "decoder":
                changes["decoder"] = theirs.decoder
                if isinstance(model, Mllm) and theirs.cross_attention is not None:
                    changes["cross_attention"] = _agreed(config.cross_attention, theirs.cross_attention)
            elif part == "connector":
                changes["connector"] = theirs.connector
            else:
                changes["encoder"] = theirs.vision_encoder if isinstance(model, DualEncoder) else theirs.encoder
                changes["preprocess"] = theirs.preprocess
        return dataclasses.replace(config, **changes)

    def fill(self, model: Mllm) -> None:
        """Gives ``model``, built of ``settings`` and ``tokenizer``, the weights of the parts that are taken.

        Raises ``InvalidArgumentError`` for a connector between other widths, and for a tokenizer with ids that the
        decoder has no rows for.
        """
        for part, source in self._models.items():
            target: nn.Module = getattr(model, part)
            state = self._decoder_state(source) if part == "decoder" else getattr(source, part).state_dict()
            # New layers stand before those of a decoder that had none.
            had = isinstance(source, Mllm) and source.config.cross_attention is not None
            try:
                with unwrapped(model.decoder.layers) if part == "decoder" and not had else nullcontext():
                    target.load_state_dict(state)
            except RuntimeError as error:  # all names and shapes that differ, in lines
                raise invalid(_FIELD, f"the {part} does not fit: {' '.join(str(error).split())}") from None

    def _decoder_state(self, source: nn.Module) -> dict[str, Any]:
        assert self.tokenizer is not None
        assert isinstance(source, CausalLm | Mllm)
        added = {
            self.tokenizer.token_id(token): _like(token, source.config.special_tokens, self.tokenizer)
            for token in self._added
        }
        try:
            return with_vocabulary(source.decoder, self.tokenizer.vocab_size, added)
        except ValueError as error:
            raise invalid(_FIELD, f"the tokenizer does not fit the decoder: {error}") from None


def _agreed(told: GatedCrossAttentionConfig | None, found: GatedCrossAttentionConfig) -> GatedCrossAttentionConfig:
    if told not in (None, found):
        raise invalid("recipe.task.cross_attention", f"the decoder comes with {found}; leave it out")
    return found


def _adopted(folder: Path) -> tuple[Tokenizer, list[str]]:
    try:
        return Tokenizer.adopt(folder)
    except NotFoundError:
        raise invalid(_FIELD, "the decoder's model has no tokenizer.json, which it was trained with") from None


def _like(token: str, specials: SpecialTokens, tokenizer: Tokenizer) -> list[int]:
    """Ids whose rows an added token starts from: the model's own token of that role, else what spells its name."""
    own = {BOS: specials.bos_token_id, EOS: specials.eos_token_id}.get(token)
    if own is not None:
        return [own[0] if isinstance(own, tuple) else own]
    return tokenizer.encode(token.strip("<>"))
