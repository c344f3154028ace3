"""The keys of one `config.json`: read by type and range, with every problem collected."""

import json
import reprlib
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from refimpl.errors import RefimplError
from refimpl.loading.families.family import REQUIRED, Family

LARGEST_SIZE = 2**31 - 1  # the limit of any size
FINITE = sys.float_info.max
T = TypeVar("T")

# Keys that do not change any number of a forward pass.
_IRRELEVANT = """
architectures model_type transformers_version _name_or_path _model_name_or_path _commit_hash
auto_map transformers.js_config tokenizer_class is_llama_config unsloth_fixed unsloth_version
torch_dtype dtype use_cache cache_implementation attn_implementation _attn_implementation
_attn_implementation_autoset _flash_attn_2_enabled gradient_checkpointing chunk_size_feed_forward
pretraining_tp custom_pipeline custom_pipelines internal_version predict_special_tokens
reorder_and_upcast_attn torchscript use_bfloat16 tf_legacy_loss is_decoder n_ctx max_sequence_length
model_max_length original_max_position_embeddings bos_token_id eos_token_id eod_token_id
pad_token_id unk_token_id sep_token_id decoder_start_token_id prefix forced_bos_token_id
forced_eos_token_id bad_words_ids suppress_tokens begin_suppress_tokens router_aux_loss_coef
router_z_loss_coef output_router_logits input_jitter_noise initializer_range initializer_factor
init_std layerdrop dropout attention_dropout hidden_dropout residual_dropout embed_dropout
embedding_dropout activation_dropout classifier_dropout attention_probs_dropout_prob
hidden_dropout_prob resid_pdrop embd_pdrop attn_pdrop bias_dropout_fusion masked_softmax_fusion
init_config init_device init_method emb_pdrop verbose tokenizer_name load_balance_coeff
use_grouped_mm aux_loss_alpha seq_aux ep_size num_logits_to_keep mamba_chunk_size chunk_size
mamba_ssm_dtype mamba_ssm_cache_dtype use_mamba_kernels time_step_floor time_step_max
rescale_prenorm_residual residual_in_fp32 moe_shared_expert_overlap z_loss_coefficient
attn_rotary_emb num_nextn_predict_layers num_mtp_layers mtp_layers_block_type
mtp_hybrid_override_pattern mtp_num_hidden_layers mtp_use_dedicated_embeddings mtp_layer_types
mtp_mlp_layer_types use_mtp num_mtp_modules mtp_transformer_layers linear_a_log_max linear_a_log_min
linear_dt_init_floor linear_dt_max linear_dt_min im_end_id im_newline_id im_start_id mask_init_id
text_end_id text_start_id moe_drop_tokens block_mlp_init_scale block_out_init_scale
block_use_xavier_init conv_use_xavier_init for_llm_compressor enable_moe_fp32_combine
moe_layer_num_skipped moe_random_routing_dropped_token capacity_factor attention_softmax_in_fp32
_num_mtp_layers mtp_loss_scaling_factor mtp_share_layers summary_type summary_use_proj
summary_activation summary_proj_to_labels summary_first_dropout id2label label2id num_labels
_num_labels problem_type finetuning_task task_specific_params output_attentions output_hidden_states
output_scores return_dict return_dict_in_generate max_length min_length do_sample early_stopping
num_beams num_beam_groups num_return_sequences temperature top_k top_p typical_p epsilon_cutoff
eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty diversity_penalty
no_repeat_ngram_size encoder_no_repeat_ngram_size exponential_decay_length_penalty
remove_invalid_values
"""
IRRELEVANT = frozenset(_IRRELEVANT.split())


def shown(value: Any) -> str:
    """A JSON value for a message, at most about 80 characters of it."""
    if isinstance(value, list | dict):
        return reprlib.repr(value)
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Keys:
    """The keys of one `config.json`: a wrong value is noted and read as a harmless one."""

    def __init__(self, entries: Mapping[str, Any], family: Family) -> None:
        self.entries, self.family = entries, family
        self.problems: list[str] = []
        self._read: set[str] = set()

    def wrong(self, problem: str) -> None:
        """Note a problem."""
        self.problems.append(problem)

    def has(self, key: str) -> bool:
        """Whether the family has a key."""
        return key in self.family.keys and self.family.keys[key].read

    def spelling(self, key: str) -> str:
        """How the file spells one of our keys."""
        return self.family.spelling(key)

    def ignore(self, *keys: str) -> None:
        """Accept keys that do not matter for this model, because another key decides."""
        self._read.update(keys)

    def get(self, key: str, inner: Any = None) -> Any:
        """Value of a key: `inner` (of a nested object), the file's or the default; None without."""
        if not self.has(key):
            return None
        facts = self.family.keys[key]
        spellings = facts.file or (key,)
        default = None if facts.default is REQUIRED else facts.default
        value = inner
        if inner is None:
            value = next(
                (self.entries[x] for x in spellings if x in self.entries), default
            )
        for other in (*spellings, *facts.echoes):
            self._read.add(other)
            if self.entries.get(other) not in (None, value):
                self.wrong(
                    f"{other}: {shown(self.entries[other])} contradicts {shown(value)}"
                )
        same = [
            x
            for x in facts.only
            if x == value and isinstance(x, bool) == isinstance(value, bool)
        ]
        if facts.only and not same:  # 1 is not true
            known = " or ".join(map(shown, facts.only))
            self.wrong(f"{spellings[0]}: only {known} is supported, got {shown(value)}")
        return value

    def size(
        self,
        key: str,
        otherwise: int | None = None,
        least: int = 1,
        most: int = LARGEST_SIZE,
    ) -> int:
        """An integer from `least` to `most`; `otherwise` if the key is absent or null."""
        value = self.get(key)
        return self.whole_number(
            key, otherwise if value is None else value, least, most
        )

    def whole_number(
        self, key: str, value: Any, least: int = 1, most: int = LARGEST_SIZE
    ) -> int:
        """A value as an integer from `least` to `most`; any other value is a problem, read as 1."""
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and least <= value <= most
        ):
            return value
        wanted = (
            "a positive integer" if least == 1 else f"an integer of at least {least}"
        )
        limit = f" of at most {most}" if isinstance(value, int) and value > most else ""
        self._expected(key, wanted + limit, value)
        return 1

    def number(self, key: str, otherwise: float | None = None) -> float:
        """A positive number; `otherwise` if the key is absent or null."""
        value = self.get(key)
        return otherwise if value is None and otherwise else self.real(key, value)

    def number_or_none(self, key: str) -> float | None:
        """A positive number; None if the key is null or the family does not have it."""
        return None if self.get(key) is None else self.number(key)

    def real(
        self, key: str, value: Any, least: float = 0, most: float = FINITE
    ) -> float:
        """A value as a positive number from `least` to `most`; else a problem, read as 1."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and value > 0 and least <= value <= most:
            return float(value)
        wanted = f"a number of at least {least:g}" if least else "a positive number"
        self._expected(key, wanted + f" of at most {most:g}" * (most < FINITE), value)
        return 1.0

    def numbers(self, key: str, value: Any, count: int) -> list[Any]:
        """A value as a list of `count` numbers; any other value is a problem, read as empty."""
        if isinstance(value, list) and len(value) == count:
            return value
        got = f"{len(value)}" if isinstance(value, list) else shown(value)
        self.wrong(f"{key}: expected a list of {count} numbers, got {got}")
        return []

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` positive numbers; each 1 if the key is absent or null."""
        value = self.get(key)
        listed = [] if value is None else self.numbers(key, value, count)
        return tuple(self.real(key, x) for x in listed or [1.0] * count)

    def listed(
        self, key: str, value: Any, known: Mapping[str, T], count: int
    ) -> list[T]:
        """What each of `count` words means; a problem is read as the last one known."""
        valid = isinstance(value, list) and all(
            isinstance(x, str) and x in known for x in value
        )
        if valid and len(value) == count:
            return [known[word] for word in value]
        got = f"{len(value)} entries" if valid else shown(value)
        self.wrong(
            f"{self.spelling(key)}: expected {count} entries out of {', '.join(known)}, got {got}"
        )
        return [*known.values()][-1:] * count

    def flag(self, key: str) -> bool:
        """True or false; any other value is a problem, read as false."""
        value = self.get(key)
        if isinstance(value, bool):
            return value
        self._expected(key, "true or false", value)
        return False

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, empty if the key is absent or null; any other value is a problem."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self._expected(key, "an object", value)
        return dict(value) if isinstance(value, dict) else {}

    def refuse(self, source: str) -> None:
        """Raise all problems, and all keys with a value that nothing read."""
        unread = [
            f"{key}: not understood (value {shown(value)})"
            for key, value in self.entries.items()
            if not {key, key.split(".")[-1]} & (self._read | IRRELEVANT)
            and value not in (None, False, [], {})
        ]
        if problems := list(dict.fromkeys(self.problems + unread)):
            raise RefimplError(
                f"{source} does not describe a model that refimpl can compute exactly:",
                f"the keys and values of transformers' {self.family.model_type} configuration",
                "correct the values; remove a key only if no number of the model depends on it",
                problems,
            )

    def _expected(self, key: str, wanted: str, value: Any) -> None:
        """Note a value that is not what it should be."""
        got = "it is missing" if value is None else f"got {shown(value)}"
        self.wrong(f"{self.spelling(key)}: expected {wanted}, {got}")
