"""Words as vectors: of class names for the text head, and of a sentence as context beside the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

from lmseg_core.errors import ModelError, first_line

TEMPLATES = ("{}", "an image of {}", "a region of {}")


class TextEncoder:
    """A language model, or the text tower of a CLIP model, that turns text into vectors. It is not trained.

    size: of a class embedding. token_size: of a context token.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._projects = isinstance(model, CLIPTextModelWithProjection)
        if tokenizer.pad_token is None:  # GPT-2 and Llama were trained without
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self.token_size = int(model.config.hidden_size)
        self.size = int(model.config.projection_dim) if self._projects else self.token_size

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> "TextEncoder":
        """Return the encoder of a model with its tokenizer, on the hub or in a folder. Raises ModelError."""
        try:
            config: Any = AutoConfig.from_pretrained(name_or_path)
            family: Any = AutoModel
            if config.model_type in ("clip", "clip_text_model"):
                family, text = CLIPTextModelWithProjection, getattr(config, "text_config", config)
                text.projection_dim = config.projection_dim  # the tower's own may be another, and its weights random
                config = text
            model = family.from_pretrained(name_or_path, config=config, dtype=torch.float32)
            return cls(model, AutoTokenizer.from_pretrained(name_or_path))
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise ModelError(f"{name_or_path} cannot be used as a text encoder ({reason}).") from None

    def classes(
        self,
        names: Sequence[str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
        templates: Sequence[str] = TEMPLATES,
    ) -> Tensor:
        """Return one embedding a class, (K, size) of length one: the mean over its names in every template.

        synonyms: other names of a class, by its name. templates: sentences with "{}" for the name. A language model
        gives the mean of a sentence's tokens, CLIP its own projection. Raises ModelError on a class without a name.
        """
        check_names(names)
        unknown = sorted(set(synonyms or {}) - set(names))
        if unknown:
            raise ModelError(f'synonyms are given for "{unknown[0]}", which is none of {", ".join(names)}.')
        if not templates or any("{}" not in template for template in templates):
            raise ModelError(f'templates are {list(templates)}; give at least one, each with "{{}}" for the name.')
        rows = []
        for name in names:
            words = [name, *(synonyms or {}).get(name, ())]
            vectors = self._sentences([template.format(word) for word in words for template in templates])
            rows.append(torch.nn.functional.normalize(vectors, dim=1).mean(0))  # (sentences, D) -> (D,)
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)  # -> (K, D)

    @torch.no_grad()
    def tokens(self, text: str) -> Tensor:
        """Return the last hidden state of a text, (1, T, token_size), as context for the language bridge."""
        if not text.strip():
            raise ModelError("the context is empty; give a text or leave the context out.")
        encoded = self._tokenizer([text], return_tensors="pt", truncation=True, max_length=self._longest())
        return torch.as_tensor(self._model(**encoded).last_hidden_state)

    @torch.no_grad()
    def _sentences(self, texts: list[str]) -> Tensor:
        encoded = self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self._longest())
        output = self._model(**encoded)
        if self._projects:
            return torch.as_tensor(output.text_embeds)  # (sentences, D)
        mask = encoded["attention_mask"][..., None].to(output.last_hidden_state)  # (sentences, T, 1)
        return torch.as_tensor((output.last_hidden_state * mask).sum(1) / mask.sum(1))  # -> (sentences, D)

    def _longest(self) -> int:
        return int(getattr(self._model.config, "max_position_embeddings", 512))


def check_names(names: Sequence[str]) -> None:
    """Raise ModelError where a class has no name, or two have the same."""
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ModelError(f"class {index} has no name ({name!r}); a text head needs one for each class.")
        if name in names[:index]:
            raise ModelError(f'two classes have the name "{name}"; give each its own.')
    if not names:
        raise ModelError("no class names are given; a text head needs at least one.")
