"""What a router reads of the model that it serves: no weights."""

from dataclasses import dataclass
from pathlib import Path

from core.validation import ModelLimits
from text.generation_defaults import GenerationDefaults
from text.grammar import GrammarCompiler
from text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Safe to share between threads."""

    tokenizer: Tokenizer
    grammars: GrammarCompiler
    defaults: GenerationDefaults

    @classmethod
    def load(cls, model_dir: Path) -> "ServedModel":
        """From the model's folder. Raises ModelError."""
        tokenizer = Tokenizer.load(model_dir)
        vocab_size, eos = tokenizer.vocab_size, tokenizer.eos_token_ids
        return cls(
            tokenizer=tokenizer,
            grammars=GrammarCompiler.load(model_dir, vocab_size=vocab_size, eos_token_ids=eos),
            defaults=GenerationDefaults.load(model_dir, vocab_size=vocab_size),
        )

    def limits(self, max_context_tokens: int) -> ModelLimits:
        """Of requests, on instances that can hold so much."""
        return ModelLimits(
            vocab_size=self.tokenizer.vocab_size,
            max_context_tokens=max_context_tokens,
            eos_token_ids=self.tokenizer.eos_token_ids,
            default_max_tokens=self.defaults.max_tokens,
        )
