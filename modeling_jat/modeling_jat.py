"""The JAT model: one transformer that acts, reads and sees.

Follows "Jack of All Trades, Master of Some, a Multi-Purpose Transformer Agent" (Gallouédec et al. 2024,
arXiv 2402.09844); loads its checkpoints unmodified.
"""

import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin, GenerationMode
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.output_capturing import capture_outputs

from .configuration_jat import JatConfig


@dataclass
class JatOutput(ModelOutput):
    """Output of [`JatModelForCausalLM`].

    Args:
        loss: scalar. For trajectories the weighted sum of the next two, for text the language modelling loss.
        observation_loss: scalar, mean squared error of the next observation; 0 for discrete observations.
        action_loss: scalar, mean squared error of continuous actions or cross-entropy of discrete ones.
        pred_observations: predictions of the observations that follow timesteps 0 to L-1, shaped as the observations;
            None for discrete observations, and where `observation_loss_coef` is 0.
        pred_actions: (B, L, action size), or logits: (B, L, vocab_size) for discrete actions, (B, L, action size,
            num_action_bins) for discretized ones.
        logits: (B, patches + tokens, vocab_size), for text.
        cache: the keys and values of the tokens so far; also named `past_key_values`.
        hidden_states: one (B, tokens, hidden_size) for the embeddings and one for each block, the last one normed.
        attentions: one (B, heads, tokens, tokens) for each block.
        row_losses: (B,), the loss of each row, without gradient.
    """

    loss: Tensor | None = None
    observation_loss: Tensor | None = None
    action_loss: Tensor | None = None
    pred_observations: Tensor | None = None
    pred_actions: Tensor | None = None
    logits: Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    row_losses: Tensor | None = None


# ----------------------------------------------------------------------------------------------------------------------
# The trunk: GPT-Neo (Black et al. 2021), global and local attention in turn. Modules are named as in its checkpoints.


class TrunkLinear(nn.Linear):
    """A linear layer that is fast for the few tokens of an acting step too, on every processor."""

    FEW_ROWS = 6

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        # One row is a product with a vector either way.
        few = 1 < rows <= self.FEW_ROWS and x.dtype == torch.float32 and x.device.type == "cpu"
        if not few or torch.compiler.is_compiling() or not columns_are_faster():
            return super().forward(x)
        columns = x.reshape(rows, -1).contiguous().T
        y = self.weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.weight, columns)
        return y.T.contiguous().unflatten(0, x.shape[:-1])


@cache
def columns_are_faster() -> bool:
    """Whether this processor's BLAS is faster in `weight @ x.T` than in `x @ weight.T`, for few rows of x.

    Both are bound by reading the weights. On some processors, the first reads them at the memory's bandwidth and the
    second at less than half of it; on others it is the other way round. Measured once, in 5 ms.
    """
    weight, x = torch.zeros(768, 768), torch.zeros(2, 768)
    products = (lambda: weight @ x.T, lambda: x @ weight.T)
    as_columns, as_rows = (min(timeit.repeat(product, number=1, repeat=20)) for product in products)
    return as_columns < as_rows


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain steps, with its weights; queries, keys and values are (B, heads, tokens, head size)."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


BLOCK = 128  # queries


def blockwise_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a whole sequence, a block of queries at a time with only the keys that it may see.

    On a CPU, forward and backward take about 0.7 of the time of torch's own function in float32, 0.5 in bfloat16: that
    one computes what the masks exclude.
    """
    outputs = []
    for start in range(0, query.shape[2], BLOCK):
        end = min(start + BLOCK, query.shape[2])
        first = 0 if module.sliding_window is None else max(0, start + 1 - module.sliding_window)
        if attention_mask is None:
            allowed = torch.ones(end - start, end - first, dtype=torch.bool, device=query.device).tril(start - first)
        else:
            allowed = attention_mask[:, :, start:end, first:end]
        part, keys, values = query[:, :, start:end], key[:, :, first:end], value[:, :, first:end]
        if query.dtype == torch.float32:  # as fast as the steps below, and keeps no weights for the backward pass
            outputs.append(F.scaled_dot_product_attention(part, keys, values, allowed, dropout, scale=scaling))
            continue
        weights = (part * scaling) @ keys.transpose(-1, -2)
        bias = torch.zeros_like(allowed, dtype=weights.dtype).masked_fill(~allowed, torch.finfo(weights.dtype).min)
        weights = F.softmax(weights + bias, dim=-1, dtype=torch.float32).to(value.dtype)
        outputs.append((F.dropout(weights, p=dropout) if dropout else weights) @ values)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def one_query_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one query, (B, heads, 1, head size): for batches in half precision, CPUs are twice as fast in it."""
    weights = (query * key).sum(-1) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask[:, :, 0]
    return (weights.softmax(-1)[..., None] * value).sum(2)[:, None], None


class JatAttention(nn.Module):
    """Causal self-attention without the usual 1/sqrt(head size), as in GPT-Neo."""

    def __init__(self, config: JatConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.num_heads = config.num_heads
        self.sliding_window = config.window_size if config.attention_layers[layer_idx] == "local" else None
        self.q_proj = TrunkLinear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = TrunkLinear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = TrunkLinear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = TrunkLinear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        if isinstance(cache, _ContextRows) and implementation != "eager":
            implementation = "sdpa"  # a context's masks are for torch's own attention
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        if implementation == "sdpa" and query.device.type == "cpu":
            if self.training and cache is None:
                attention = blockwise_attention
            elif isinstance(cache, _ContextRows) and query.shape[2] == 1 and query.dtype != torch.float32:
                attention = one_query_attention
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=1.0,
            dropout=self.config.attention_dropout if self.training else 0.0,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.out_proj(output.flatten(2)), weights


class JatMLP(nn.Module):
    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        self.c_fc = TrunkLinear(config.hidden_size, config.intermediate_size)
        self.c_proj = TrunkLinear(config.intermediate_size, config.hidden_size)
        # "gelu_new" is the same function in several steps; this is torch's, in one.
        name = "gelu_pytorch_tanh" if config.activation_function == "gelu_new" else config.activation_function
        self.act = ACT2FN[name]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(hidden_states)))


class JatBlock(GradientCheckpointingLayer):
    def __init__(self, config: JatConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = nn.ModuleDict({"attention": JatAttention(config, layer_idx)})  # nested as in GPT-Neo
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = JatMLP(config)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> Tensor:
        attended, _ = self.attn["attention"](self.ln_1(hidden_states), attention_mask, cache, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.ln_2(hidden_states)))


class EmbeddingNorm(nn.LayerNorm):
    """Of what the encoders make, before positions are added to it.

    Begins at half of the usual size: from larger embeddings what depends on positions is learnt late, from smaller ones
    what depends on the observations themselves.
    """

    START = 0.5

    def __init__(self, config: JatConfig) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_epsilon)


class JatPreTrainedModel(PreTrainedModel):
    config: JatConfig
    config_class = JatConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JatBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": JatBlock, "attentions": JatAttention}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EmbeddingNorm):
            init.constant_(module.weight, EmbeddingNorm.START)


class JatTrunk(JatPreTrainedModel):
    """The blocks, the token table and the table of positions, counted in tokens."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embed_dropout)
        self.h = nn.ModuleList([JatBlock(config, layer_idx) for layer_idx in range(config.num_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def get_position_embeddings(self) -> nn.Embedding:
        return self.wpe

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Add positions at the end, which begin as the mean of those there are, or take the last ones away."""
        table = self.wpe.weight.detach()
        more = new_num_position_embeddings - len(table)
        table = torch.cat([table[:new_num_position_embeddings], table.mean(dim=0).expand(max(more, 0), -1)])
        self.wpe = nn.Embedding.from_pretrained(table, freeze=not self.wpe.weight.requires_grad)
        self.config.max_position_embeddings = new_num_position_embeddings

    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Pass embeddings of shape (B, tokens, hidden_size) through the blocks.

        `attention_mask` is 1 for real tokens, (B, past and new tokens), or a mask for each kind of block ready for the
        attention function.
        """
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past_length = cache.get_seq_length() if cache is not None else 0
        length = past_length + inputs_embeds.shape[1]
        # A static cache counts in a tensor, which compiled code must not look into.
        if isinstance(length, int) and length > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {length} tokens does not fit the model's {self.config.max_position_embeddings} "
                f"positions: truncate it (a timestep takes {self.config.tokens_per_timestep})"
            )
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + past_length
        if not isinstance(attention_mask, dict):
            arguments = (self.config, inputs_embeds, attention_mask, cache, position_ids)
            attention_mask = {
                "full_attention": create_causal_mask(*arguments),
                "sliding_attention": create_sliding_window_causal_mask(*arguments),
            }

        hidden_states = self.drop(inputs_embeds + self.wpe(position_ids))
        for block, kind in zip(self.h, self.config.layer_types, strict=True):
            hidden_states = block(hidden_states, attention_mask=attention_mask[kind], cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden_states), cache=cache)

    def forward_packed(self, inputs_embeds: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPast:
        """The same for rows of different lengths, which share fewer rows, one behind the other; 0 where is padding."""
        length = inputs_embeds.shape[1]
        starts = pack(attention_mask.sum(dim=1).tolist(), length)
        rows = 1 + max(starts) // length
        real = attention_mask.flatten().nonzero()[:, 0]
        positions = attention_mask.cumsum(dim=1) - 1
        places = (positions + torch.tensor(starts, device=real.device)[:, None]).flatten()[real]

        packed = inputs_embeds.new_zeros(rows * length, inputs_embeds.shape[2])
        packed[places] = inputs_embeds.flatten(0, 1)[real]
        # Rows that share one are told apart by their positions, which begin anew.
        position_ids = positions.new_zeros(rows * length)
        position_ids[places] = positions.flatten()[real]
        outputs = self(packed.unflatten(0, (rows, length)), position_ids=position_ids.unflatten(0, (rows, length)))
        hidden_states = torch.zeros_like(inputs_embeds).flatten(0, 1)
        hidden_states[real] = outputs.last_hidden_state.flatten(0, 1)[places].to(hidden_states.dtype)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states.view_as(inputs_embeds))


def pack(lengths: list[int], size: int) -> list[int]:
    """Where to put sequences into rows of a size, one behind the other, counted from the start of the first row.

    Longest first, each into the first row with room for it.
    """
    starts, ends = [0] * len(lengths), []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        row = next((row for row, end in enumerate(ends) if end + lengths[index] <= size), len(ends))
        if row == len(ends):
            ends.append(0)
        starts[index] = row * size + ends[row]
        ends[row] += lengths[index]
    return starts


# ----------------------------------------------------------------------------------------------------------------------
# Encoders and decoders.


class ChannelAttention(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): scales each channel by what all of them hold on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 8, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 8, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


def instance_norm(x: Tensor) -> Tensor:
    """Of (B, channels, height, width): layer norms of the channels, in float32 on CPUs twice as fast as torch's."""
    return F.layer_norm(x.flatten(2), (x.shape[2] * x.shape[3],)).view_as(x)


class Convolution(nn.Conv2d):
    """In float16 on CPUs, where torch's own takes ten times as long as in float32, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float16 or x.device.type != "cpu":
            return super().forward(x)
        return self._conv_forward(x.float(), self.weight.float(), self.bias.float()).to(x.dtype)


class ImageEncoder(nn.Module):
    """(B, channels, 84, 84) -> (B, hidden_size)."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        width = config.image_encoder_width
        self.conv1 = Convolution(config.observation_channels, width, kernel_size=3, stride=2, padding=1)  # 42 x 42
        self.att1 = ChannelAttention(width)
        self.conv2 = Convolution(width, 2 * width, kernel_size=3, stride=2, padding=1)  # 21 x 21
        self.att2 = ChannelAttention(2 * width)
        self.conv3 = Convolution(2 * width, 4 * width, kernel_size=3, stride=2, padding=1)  # 11 x 11
        self.att3 = ChannelAttention(4 * width)
        self.fc = nn.Linear(4 * width * 11 * 11, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.att1(F.leaky_relu(instance_norm(self.conv1(x))))
        x = self.att2(F.leaky_relu(instance_norm(self.conv2(x))))
        x = self.att3(F.leaky_relu(instance_norm(self.conv3(x))))
        return self.fc(x.flatten(1))


class ImageDecoder(nn.Module):
    """(B, hidden_size) -> (B, channels, 84, 84), values in -1..1."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        upsample = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
        self.fc = nn.Linear(config.hidden_size, 128 * 11 * 11)
        self.deconv1 = nn.ConvTranspose2d(128, 64, **upsample)  # 22 x 22
        self.att1 = ChannelAttention(64)
        self.deconv2 = nn.ConvTranspose2d(64, 32, **upsample)  # 42 x 42
        self.att2 = ChannelAttention(32)
        self.deconv3 = nn.ConvTranspose2d(32, config.observation_channels, **upsample)  # 84 x 84

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).unflatten(1, (128, 11, 11))
        x = F.leaky_relu(instance_norm(self.deconv1(x)))
        x = self.att1(F.interpolate(x, size=(21, 21)))
        x = self.att2(F.leaky_relu(instance_norm(self.deconv2(x))))
        return F.tanh(self.deconv3(x))


class PerTimestep(nn.Module):
    """Applies a module to every timestep: (B, L, ...) -> (B, L, ...)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class PatchEncoder(nn.Module):
    """(B, 3, image_size, image_size) -> (B, patches, hidden_size), row by row, as in ViT (Dosovitskiy et al. 2021)."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        self.projection = Convolution(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


MU, LARGEST = 100, 256


def mu_law(values: Tensor) -> Tensor:
    """Values of -256..256 as ones of -1..1, of which small ones take more room (Reed et al. 2022, section 2.1)."""
    return values.sign() * (values.abs() * MU).log1p() / np.log1p(LARGEST * MU)


class ContinuousEncoder(nn.Linear):
    """(..., size) -> (..., hidden_size), of the values and, if so configured, of their mu-law, sines and cosines.

    Without the mu-law, a pole's angle, which is 0.01 and decides about the action, is hardly seen beside velocities;
    without sines and cosines, that a hand at 0.65 m is not yet at 0.68 m is learnt last.
    """

    FEW_ROWS = 6

    def __init__(self, config: JatConfig) -> None:
        features = 1 + config.mu_law_features + 2 * config.num_frequencies
        super().__init__(features * config.max_continuous_size, config.hidden_size)
        self.mu_law_features, self.num_frequencies = config.mu_law_features, config.num_frequencies
        self.size = config.max_continuous_size

    def forward(self, x: Tensor) -> Tensor:
        features = torch.stack([x, mu_law(x)] if self.mu_law_features else [x], dim=-2)
        if self.num_frequencies:
            frequencies = torch.pi * 2 ** torch.arange(self.num_frequencies, device=x.device)
            angles = frequencies[:, None] * x[..., None, :]
            waves = torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3, -2)
            features = torch.cat([features, waves], dim=-2)
        features = features.to(self.weight.dtype)
        if x.shape[:-1].numel() <= self.FEW_ROWS:
            return super().forward(cyclic_expand(features, self.size).flatten(-2))
        # For many rows it pays to add up, once, the weights that a value and its repetitions are multiplied with.
        weight = cyclic_sum(self.weight.unflatten(-1, (-1, self.size)), x.shape[-1])
        return F.linear(features.flatten(-2), weight.flatten(-2), self.bias)


CELL_SIZE = 3  # values: kind, color and state


class MissionFilters(nn.Module):
    """Applies filters, made of the mission, to each cell: (..., values, size) -> (..., hidden_size - 1).

    "go to the red ball" can make one that answers to red balls. Without them, what two parts of an observation have in
    common is learnt for each place anew.
    """

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        size = config.discrete_embedding_size
        self.num_filters, self.mission_length = config.mission_filters, config.mission_length
        self.num_cells = (config.max_discrete_value - self.mission_length) // CELL_SIZE
        self.filters = nn.Linear(self.mission_length * size, self.num_filters * CELL_SIZE * size)
        self.projection = nn.Linear(self.num_cells * self.num_filters, config.hidden_size - 1)

    def forward(self, values: Tensor) -> Tensor:
        grid, mission = values.split([values.shape[-2] - self.mission_length, self.mission_length], dim=-2)
        cells = grid[..., -CELL_SIZE * self.num_cells :, :].unflatten(-2, (self.num_cells, CELL_SIZE)).flatten(-2)
        filters = self.filters(mission.flatten(-2)).unflatten(-1, (self.num_filters, -1))
        return self.projection((cells @ filters.transpose(-1, -2)).relu().flatten(-2))


class DiscretizedActionDecoder(nn.Module):
    """(..., hidden_size) -> (..., size, bins), a score for each bin of each value of a continuous action.

    Gato's discretization (Reed et al. 2022, section 2.1 and figure 14): the mu-law makes small values large, uniform
    bins over -1..1 follow. Gato does so only with values outside -1..1; here it is with all, so that the bins do not
    depend on the task. Gato writes an action's values one after the other; here they are predicted together.
    """

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        self.num_bins = config.num_action_bins
        self.fc = nn.Linear(config.hidden_size, config.hidden_size)
        self.place = nn.Embedding(config.max_continuous_size, config.hidden_size)  # of a value in its vector
        self.bins = nn.Linear(config.hidden_size, config.num_action_bins)

    def forward(self, x: Tensor, size: int) -> Tensor:
        return self.bins(F.gelu(self.fc(x)[..., None, :] + self.place.weight[:size]))

    def encode(self, values: Tensor) -> Tensor:
        """The bins that values lie in; what is larger than 256 lies in the outermost."""
        return ((mu_law(values) + 1) / 2 * self.num_bins).long().clamp(0, self.num_bins - 1)

    def decode(self, bins: Tensor) -> Tensor:
        """The values in the middle of bins."""
        scaled = 2 * (bins + 0.5) / self.num_bins - 1
        return scaled.sign() * (scaled.abs() * np.log1p(LARGEST * MU)).expm1() / MU


def cyclic_expand(x: Tensor, size: int) -> Tensor:
    """Repeat the last dimension until it has `size` values: [x0, x1, x0, x1, x0, ...]."""
    _check_continuous_size(x.shape[-1], size)
    return x[..., torch.arange(size, device=x.device) % x.shape[-1]]


def cyclic_sum(x: Tensor, size: int) -> Tensor:
    """Sums of what `cyclic_expand` would multiply with the same value: [x0 + x2 + x4, x1 + x3] for a size of 2."""
    _check_continuous_size(size, x.shape[-1])
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-2)


def _check_continuous_size(size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(
            f"a continuous vector has at most {largest} values (an observation's reward included), got {size}"
        )


def _with_rewards(observations: Tensor, rewards: Tensor) -> Tensor:
    return torch.cat([observations.float(), rewards[..., None].float()], dim=-1)


def masked_mean(values: Tensor, mask: Tensor | None, dim: int | None = None) -> Tensor:
    """Mean of (B, L) values where the mask is 1, of all or along a dimension; 0 where it is 1 nowhere."""
    mask = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    return (values * mask).sum(dim) / mask.sum(dim).clamp(min=1)


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row: (N, classes) scores and (N,) classes -> (N,); 0 where the class is -100.

    The same as torch's without reduction, in float32, but some rows at a time: over a large vocabulary, scores that
    are read and written in one piece, and their float32 copies, are most of the memory of training.
    """

    PART = 2**20  # scores, some of which are in a processor's cache

    @staticmethod
    def forward(ctx: Any, scores: Tensor, classes: Tensor) -> Tensor:
        rows = max(1, CrossEntropy.PART // scores.shape[1])
        norms = torch.cat([part.float().logsumexp(-1) for part in scores.split(rows)])
        chosen = scores.gather(1, classes.clamp(min=0)[:, None])[:, 0].float()
        ctx.save_for_backward(scores, classes, norms)
        return (norms - chosen) * (classes >= 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        scores, classes, norms = ctx.saved_tensors
        gradient = gradient * (classes >= 0)
        result = torch.empty_like(scores)
        rows = max(1, CrossEntropy.PART // scores.shape[1])
        inputs = (scores, classes.clamp(min=0), norms, gradient, result)
        for part, chosen, norm, weight, target in zip(*(t.split(rows) for t in inputs), strict=True):
            errors = (part.float() - norm[:, None]).exp_()
            errors[torch.arange(len(part), device=part.device), chosen] -= 1
            target.copy_(errors.mul_(weight[:, None]))
        return result, None


# ----------------------------------------------------------------------------------------------------------------------
# Acting.


class JatContext:
    """What an agent remembers while it acts: one row for each environment.

    Owns, for B environments, a prompt of P tokens and a window of T timesteps:

    - `keys`, `values`: (layers, B, heads, P + 2 T, head size), preallocated. The prompt stands in the first P slots.
      Timestep t stands in slots P + 2 t (the action taken before it) and P + 2 t + 1 (its observation). An episode's
      first observation has no action before it: slot P holds a placeholder that nothing attends to, and what stands
      behind it has its slot less 1 as its position. Where actions are not seen, all of this is simpler: timestep t
      stands in slot P + t, its position.
    - `embeddings`: (B, 2 T or T, hidden_size), the timesteps' tokens before their positions were added.
    - `timesteps`: (B,), how many timesteps a row holds; 0 where an episode begins.
    - `actions`: (B, ...), the last action of every row; of a Box within `low` and `high`, its bounds.
    - `generators`: of the actions that are sampled, one for every row: what it plays does not depend on the others.

    A row whose window is full forgets, but never the prompt: the newest timesteps, a share `remembered` of the window,
    are encoded anew at the first positions. So positions stay in the range that the agent was trained on. With the
    default half, it always looks back on at least half a window, and the cost is one pass over half a window every
    half window. With 0 it forgets all.
    """

    remembered = 0.5

    def __init__(
        self,
        model: "JatModelForCausalLM",
        action_space: Any,
        num_envs: int | None = None,
        prompt: dict[str, Tensor] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        config = model.config
        rows = 1 if num_envs is None else num_envs
        if rows < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.model = model
        self.action_space = action_space
        self.num_envs = num_envs
        options = {"device": model.device, "dtype": model.dtype}
        # gymnasium is not imported here: its spaces are told by what they have.
        if hasattr(action_space, "n") and 0 <= action_space.start <= config.vocab_size - action_space.n:
            self.actions = torch.zeros(rows, dtype=torch.long, device=model.device)
        elif (
            hasattr(action_space, "low")
            and len(action_space.shape) == 1
            and action_space.shape[0] <= config.max_continuous_size
        ):
            self.actions = torch.zeros((rows, *action_space.shape), **options)
            self.low = torch.as_tensor(action_space.low, dtype=torch.float32, device=model.device)
            self.high = torch.as_tensor(action_space.high, dtype=torch.float32, device=model.device)
        else:
            raise ValueError(
                f"expected a Discrete action space within 0 to {config.vocab_size - 1}, or a Box of one dimension with "
                f"at most {config.max_continuous_size} values, got {action_space}"
            )
        prompt_tokens = self._embed_prompt(prompt or {})
        self.prompt_length = prompt_tokens.shape[1]
        self.tokens_per_timestep = config.tokens_per_timestep
        self.window = (config.max_position_embeddings - self.prompt_length) // self.tokens_per_timestep
        if self.window < 1:
            raise ValueError(
                f"a prompt of {self.prompt_length} tokens leaves no room for a timestep in the model's "
                f"{config.max_position_embeddings} positions: shorten it"
            )
        tokens = self.tokens_per_timestep * self.window
        slots, head_size = self.prompt_length + tokens, config.hidden_size // config.num_heads
        self.keys = torch.zeros((config.num_layers, rows, config.num_heads, slots, head_size), **options)
        self.values = torch.zeros_like(self.keys)
        self.embeddings = torch.zeros((rows, tokens, config.hidden_size), **options)
        self.timesteps = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.generators = self._generators(range(rows), seeds)
        if self.prompt_length:
            slots = torch.arange(self.prompt_length, device=model.device)
            self._encode(torch.zeros(1, dtype=torch.long, device=model.device), prompt_tokens, slots[None])
            for memory in (self.keys, self.values):  # the same prompt for every environment
                memory[:, 1:, :, : self.prompt_length] = memory[:, :1, :, : self.prompt_length]

    @property
    def action_kind(self) -> str:
        return "continuous_actions" if self.actions.is_floating_point() else "discrete_actions"

    def _embed_prompt(self, prompt: dict[str, Tensor]) -> Tensor:
        """(1, P, hidden_size): the instruction, then the demonstration."""
        prompt = {key: value.to(self.model.device) for key, value in prompt.items() if key != "attention_mask"}
        embeddings = [torch.zeros((1, 0, self.model.config.hidden_size), device=self.model.device)]
        if "input_ids" in prompt:
            embeddings.append(self.model.embed_tokens("input_ids", prompt.pop("input_ids")))
        if prompt:
            self._check_demonstration(prompt)
            embeddings.append(self.model.embed_trajectories(prompt))
        if any(len(embedding) != 1 for embedding in embeddings):
            raise ValueError(f"expected one prompt for all environments, got {[len(part) for part in embeddings[1:]]}")
        return torch.cat(embeddings, dim=1).to(self.model.dtype)

    def _check_demonstration(self, demonstration: dict[str, Tensor]) -> None:
        space, kind, actions = self.action_space, self.action_kind, demonstration.get(self.action_kind)
        if actions is None or actions.shape[2:] != space.shape:
            shape = ", ".join(["1", "L", *map(str, space.shape)])
            given = {key: tuple(value.shape) for key, value in demonstration.items()}
            raise ValueError(f"expected a demonstration with {kind} of shape ({shape}), got {given}")
        if kind == "discrete_actions":
            inside = (actions >= space.start) & (actions < space.start + space.n)
        elif self.model.config.action_feedback == "predicted":
            inside = actions.isfinite()
        else:
            inside = (actions >= self.low) & (actions <= self.high)
        if not inside.all():
            raise ValueError(f"expected a demonstration with {kind} inside {space}, got {actions[~inside].tolist()}")

    def reset(self, rows: Any = None, seeds: Sequence[int] | None = None) -> None:
        """Begin a new episode in some rows.

        Args:
            rows: list of indices or boolean mask; by default all.
            seeds: of the actions that are sampled, one for each of the rows; by default the rows go on drawing.
        """
        index = self._indices(range(len(self.timesteps)) if rows is None else rows)
        self.timesteps[torch.as_tensor(index)] = 0
        if seeds is not None:
            for row, generator in zip(index, self._generators(index, seeds), strict=True):
                self.generators[row] = generator

    def keep(self, rows: Any) -> None:
        """Go on with some rows only, which are 0, 1, and so on from then on: no more is to happen in the others.

        Args:
            rows: list of indices or boolean mask.
        """
        index = self._indices(rows)
        self.num_envs = len(index)
        self.generators = [self.generators[row] for row in index]
        kept = torch.as_tensor(index, device=self.timesteps.device)
        self.keys, self.values = self.keys[:, kept], self.values[:, kept]
        self.embeddings, self.timesteps, self.actions = self.embeddings[kept], self.timesteps[kept], self.actions[kept]

    @staticmethod
    def _indices(rows: Any) -> np.ndarray:
        index = np.asarray(rows)
        return np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)

    @staticmethod
    def _generators(rows: Sequence[int], seeds: Sequence[int] | None) -> list[np.random.Generator]:
        if seeds is None:  # then torch's own seed decides
            seeds = torch.randint(2**63 - 1, (len(rows),)).tolist()
        if len(seeds) != len(rows):
            raise ValueError(f"expected a seed for each of {len(rows)} environments, got {len(seeds)}")
        return [np.random.default_rng(seed) for seed in seeds]

    def sample(self, logits: Tensor) -> Tensor:
        """Draw from the softmax of every row's logits (B, ..., n)."""
        # The argmax of logits with Gumbel noise is such a draw.
        noise = np.stack([generator.gumbel(size=logits.shape[1:]) for generator in self.generators])
        return (logits.float() + torch.from_numpy(noise).to(logits.device, torch.float32)).argmax(-1)

    def append(self, tokens: Tensor, window: int) -> Tensor:
        """Encode the next timestep of every row.

        Args:
            tokens: (B, 2 or 1, hidden_size), the action before the observation, if it is seen, and the observation.
            window: timesteps that a row may hold before it forgets.

        Returns:
            The last hidden state of the observations, (B, hidden_size).
        """
        full = (self.timesteps >= window).nonzero()[:, 0]
        if len(full):
            self._forget(full, kept=min(int(self.remembered * window), window - 1))
        return self._append(torch.arange(len(tokens), device=tokens.device), tokens)[:, -1]

    def _forget(self, rows: Tensor, kept: int) -> None:
        first = self.tokens_per_timestep * (self.timesteps[rows, None] - kept)
        slots = first + torch.arange(self.tokens_per_timestep * kept, device=rows.device)
        newest = self.embeddings[rows[:, None], slots]
        self.timesteps[rows] = 0
        if kept:
            self._append(rows, newest)

    def _append(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Encode the tokens of n timesteps, (rows, 2 n or n, hidden_size), behind those that the rows hold already."""
        first = self.tokens_per_timestep * self.timesteps[rows, None]
        slots = first + torch.arange(tokens.shape[1], device=rows.device)
        self.embeddings[rows[:, None], slots] = tokens
        self.timesteps[rows] += tokens.shape[1] // self.tokens_per_timestep
        return self._encode(rows, tokens, self.prompt_length + slots)

    def _encode(self, rows: Tensor, tokens: Tensor, slots: Tensor) -> Tensor:
        """Pass tokens (rows, n, hidden_size) through the trunk, their keys and values to these slots (rows, n)."""
        return self.model.transformer(
            tokens,
            attention_mask=self._masks(slots, tokens.dtype),
            position_ids=self._positions(slots),
            cache=_ContextRows(self, rows, slots),
        ).last_hidden_state

    @property
    def _placeholder(self) -> int | None:
        """The slot of the action before the first observation."""
        return self.prompt_length if self.tokens_per_timestep == 2 else None

    def _positions(self, slots: Tensor) -> Tensor:
        return slots if self._placeholder is None else slots - (slots > self._placeholder).long()

    def _masks(self, slots: Tensor, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Additive masks (rows, 1, n, slots in use) for tokens at `slots`, by kind of block; None if all is seen."""
        query = slots[:, None, :, None]
        key = torch.arange(int(slots.max()) + 1, device=slots.device)
        causal = key <= query
        if self._placeholder is not None:
            causal &= (key != self._placeholder) | (query == self._placeholder)
        local = causal & (self._positions(query) - self._positions(key) < self.model.config.window_size)
        return {
            kind: None
            if allowed.all()
            else torch.zeros(allowed.shape, dtype=dtype, device=slots.device).masked_fill(
                ~allowed, torch.finfo(dtype).min
            )
            for kind, allowed in (("full_attention", causal), ("sliding_attention", local))
        }


class _ContextRows:
    """Some rows of a context, as the cache that the trunk's attention writes to and reads from."""

    def __init__(self, context: JatContext, rows: Tensor, slots: Tensor) -> None:
        self.context, self.rows, self.slots = context, rows, slots
        self.length = int(slots.max()) + 1
        self.all_rows = len(rows) == len(context.timesteps)
        # Environments that began together stand at the same slots, which are written to in one piece.
        self.in_step = self.all_rows and bool((slots == slots[:1]).all())

    def get_seq_length(self) -> int:
        """0: a context gives the positions and masks of its tokens itself."""
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        return (
            self._store(self.context.keys[layer_idx], key),
            self._store(self.context.values[layer_idx], value),
        )

    def _store(self, memory: Tensor, new: Tensor) -> Tensor:
        if self.in_step:
            memory[:, :, self.length - new.shape[2] : self.length] = new
        else:
            memory[self.rows[:, None], :, self.slots] = new.transpose(1, 2)
        rows = memory if self.all_rows else memory[self.rows]
        return rows[:, :, : self.length]


# ----------------------------------------------------------------------------------------------------------------------
# The model.

_OBSERVATION_KINDS = ("continuous_observations", "discrete_observations", "image_observations")
_ACTION_KINDS = ("continuous_actions", "discrete_actions")
_RECORDED = ("output_hidden_states", "output_attentions")


def _given(kinds: tuple[str, ...], inputs: dict[str, Any]) -> str:
    """The one kind among the inputs."""
    given = [kind for kind in kinds if inputs.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(f"expected one of {', '.join(kinds)}, got {', '.join(given) or 'none'}")
    return given[0]


def _check_shapes(dimensions: int, **tensors: Tensor | None) -> None:
    """Refuse tensors that differ in the first dimensions: the batch, or the batch and the timesteps."""
    shapes = {name: tuple(tensor.shape[:dimensions]) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1:
        what = "batch size" if dimensions == 1 else "batch size and number of timesteps"
        raise ValueError(f"expected one {what}, got {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")


class JatModelForCausalLM(JatPreTrainedModel, GenerationMixin):
    """A transformer over trajectories, text and images.

                        a0        o1        a1        o2                      t1        t2        t3
                        ^         ^         ^         ^                       ^         ^         ^
        decoders     action observation  action  observation              language  language  language
                        |         |         |         |                       |         |         |
        trunk        [o0 ------- a0 ------- o1 ------ a1]     [p0 ... p195 -- t0 ------- t1 ------ t2]
                        |         |         |         |        |               |         |         |
        encoders   o0, r_-1      a0       o1, r0      a1      image patches  text      text      text

    A trajectory's tokens alternate observation, action; the reward beside an observation is the one received before
    it. Where actions are not seen, both predictions come from the observation's token. Each kind of observation and
    action has an encoder and a decoder; text, discrete values and discrete actions share one table of embeddings.
    """

    _keys_to_ignore_on_load_unexpected = [
        r"multi_discrete_decoder\.",  # in the published files, used by nothing
        r"single_discrete_encoder\.weight",  # other names of transformer.wte.weight
        r"multi_discrete_encoder\.0\.weight",
        r"image_decoder\.",  # of a model that predicted observations, where this one does not
        r"attn\.attention\.(masked_)?bias$",  # causal masks, which older versions of GPT-Neo stored
    ]

    _tied_weights_keys = {"single_discrete_decoder.weight": "transformer.wte.weight"}  # where the config ties them

    def __init__(self, config: JatConfig) -> None:
        super().__init__(config)
        hidden_size, reduced_size = config.hidden_size, config.discrete_embedding_size
        self.transformer = JatTrunk(config)
        self.vit_encoder = PatchEncoder(config)
        self.continuous_encoder = ContinuousEncoder(config)
        self.multi_discrete_encoder = nn.Sequential(
            nn.Identity(),  # where the published model names the shared table of embeddings once more
            nn.Linear(hidden_size, reduced_size),
            nn.ReLU(),
            nn.Flatten(start_dim=2),
            nn.Linear(config.max_discrete_value * reduced_size, hidden_size - 1),  # the reward is the last feature
        )
        if config.mission_filters:
            self.mission_filters = MissionFilters(config)
        self.image_encoder = PerTimestep(ImageEncoder(config))
        if config.image_rewards:
            self.image_reward_encoder = nn.Linear(1, hidden_size, bias=False)
        self.embedding_norm = EmbeddingNorm(config) if config.normed_embeddings else nn.Identity()
        self.single_discrete_decoder = nn.Linear(hidden_size, config.vocab_size, bias=False)
        self.continuous_decoder = nn.Linear(hidden_size, config.max_continuous_size)
        if config.continuous_action_head == "discretized":
            self.discretized_action_decoder = DiscretizedActionDecoder(config)
        if config.observation_loss_coef:
            self.image_decoder = PerTimestep(ImageDecoder(config))
        self.context: JatContext | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def get_position_embeddings(self) -> nn.Embedding:
        return self.transformer.get_position_embeddings()

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """See [`JatTrunk.resize_position_embeddings`]. A context that is acting does not see the new ones."""
        self.transformer.resize_position_embeddings(new_num_position_embeddings)

    def get_output_embeddings(self) -> nn.Linear:
        return self.single_discrete_decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.single_discrete_decoder = value

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a model, whole: see [`~transformers.PreTrainedModel.from_pretrained`] for the arguments.

        Raises:
            ValueError: if the checkpoint lacks weights, which would be random, or holds others. With
                `output_loading_info` the model is returned anyway, with the lists of them.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        faults = [
            f"{fault.removesuffix('_keys')} {', '.join(sorted(info[fault]))}"
            for fault in ("missing_keys", "unexpected_keys")
            if info[fault]
        ]
        if faults:
            raise ValueError(
                f"{args[0] if args else kwargs.get('pretrained_model_name_or_path')} is not a checkpoint of this "
                f"configuration: weights {'; weights '.join(faults)}. To load what fits, and the rest at random, pass "
                "output_loading_info=True"
            )
        return model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the model, and its code for `trust_remote_code=True`."""
        self.config.auto_map = {"AutoModel": f"modeling_jat.{type(self).__name__}"}  # others are added by transformers
        super().save_pretrained(save_directory, **kwargs)

    # Embedding

    def embed_observations(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embed observations with the rewards received before them, (B, L, hidden_size)."""
        kind = _given(_OBSERVATION_KINDS, inputs)
        observations, rewards = inputs[kind], inputs.get("rewards")
        if rewards is None:
            raise ValueError(f"rewards of shape {tuple(observations.shape[:2])} are required beside {kind}")
        if kind == "continuous_observations":
            return self.embedding_norm(self.continuous_encoder(_with_rewards(observations, rewards)))
        rewards = rewards[..., None].to(self.dtype)
        if kind == "discrete_observations":
            return self.embedding_norm(torch.cat([self._embed_discrete_observations(observations), rewards], dim=-1))
        embeddings = self.image_encoder(self._rescale(observations))
        if self.config.image_rewards:
            embeddings = embeddings + self.image_reward_encoder(rewards)
        return self.embedding_norm(embeddings)

    def _embed_discrete_observations(self, observations: Tensor) -> Tensor:
        if observations.shape[-1] != self.config.max_discrete_value:
            raise ValueError(
                f"discrete_observations must have {self.config.max_discrete_value} values a timestep, mission tokens "
                f"included, got {observations.shape[-1]}"
            )
        reduce = self.multi_discrete_encoder[1]
        if observations.numel() > self.config.vocab_size:
            # Reducing every token once is less work than reducing each of so many values.
            self._check_tokens("discrete_observations", observations)
            reduced = F.embedding(observations, reduce(self.transformer.wte.weight))
        else:
            reduced = reduce(self.embed_tokens("discrete_observations", observations))
        values = self.multi_discrete_encoder[2](reduced)
        embeddings = self.multi_discrete_encoder[3:](values)
        return embeddings + self.mission_filters(values) if self.config.mission_filters else embeddings

    def embed_tokens(self, name: str, tokens: Tensor) -> Tensor:
        """Embed tokens of the vocabulary; `name` is what an error calls them."""
        self._check_tokens(name, tokens)
        return self.transformer.wte(tokens)

    def _check_tokens(self, name: str, tokens: Tensor) -> None:
        if tokens.device.type != "cpu" or torch.compiler.is_compiling():  # where looking would make others wait
            return
        if tokens.numel() and int(tokens.max()) >= self.config.vocab_size:
            raise ValueError(
                f"{name} must be below the vocabulary's {self.config.vocab_size} tokens, got {int(tokens.max())}"
            )

    def embed_trajectories(self, inputs: dict[str, Tensor], attention_mask: Tensor | None = None) -> Tensor:
        """Embed observations and actions in turn, (B, 2 L, hidden_size), or where those are not seen observations only.

        Tokens are 0 where the mask, (B, L), is 0.
        """
        if attention_mask is not None:
            real = attention_mask.flatten().nonzero()[:, 0]
            given = {name: values for name, values in inputs.items() if values is not None}
            tokens = self.embed_trajectories({name: values.flatten(0, 1)[real][None] for name, values in given.items()})
            result = tokens.new_zeros(attention_mask.numel(), self.config.tokens_per_timestep, tokens.shape[-1])
            result[real] = tokens.view(-1, *result.shape[1:])
            return result.view(len(attention_mask), -1, tokens.shape[-1])
        observations = self.embed_observations(inputs)
        if self.config.tokens_per_timestep == 1:
            return observations
        return torch.stack([observations, self.embed_actions(inputs)], dim=2).flatten(1, 2)

    def embed_actions(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embed actions, (B, L, hidden_size)."""
        kind = _given(_ACTION_KINDS, inputs)
        if kind == "discrete_actions":
            return self.embed_tokens(kind, inputs[kind])
        return self.embedding_norm(self.continuous_encoder(inputs[kind].float()))

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Embed the patches of images that go with text, (B, patches, hidden_size)."""
        return self.embedding_norm(self.vit_encoder(pixel_values.to(self.device, self.dtype)))

    def _rescale(self, images: Tensor) -> Tensor:
        """Images as floats in -1..1; those of type uint8 are pixels."""
        floats = images.to(self.dtype)
        return floats.div_(127.5).sub_(1) if images.dtype == torch.uint8 else floats

    # Training

    @can_return_tuple
    @deprecate_kwarg("past_key_values", version="5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        continuous_observations: Tensor | None = None,
        discrete_observations: Tensor | None = None,
        image_observations: Tensor | None = None,
        continuous_actions: Tensor | None = None,
        discrete_actions: Tensor | None = None,
        rewards: Tensor | None = None,
        prompt_input_ids: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        loss_weight: Tensor | None = None,
        return_loss: bool = True,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> JatOutput:
        """Predict the actions and observations of trajectories, or the next tokens of text.

        Args:
            input_ids: (B, tokens), text.
            pixel_values: (B, 3, image_size, image_size), an image that stands before the text.
            continuous_observations: (B, L, size).
            discrete_observations: (B, L, max_discrete_value).
            image_observations: (B, L, channels, 84, 84), in -1..1 or as pixels of type uint8.
            continuous_actions: (B, L, size).
            discrete_actions: (B, L).
            rewards: (B, L), the reward received before each observation, 0 at the start of an episode.
            prompt_input_ids: (B, P), text that stands before trajectories, such as the task's instruction; padded on
                the left.
            prompt_attention_mask: (B, P), 1 where the prompt is real; a row may have none.
            attention_mask: (B, L) or (B, tokens), 1 where an input is real and 0 where it is padding.
            position_ids: (B, tokens), of all tokens; counted from the first one by default.
            inputs_embeds: (B, tokens, hidden_size), instead of `input_ids`.
            cache: the keys and values of earlier tokens; also named `past_key_values`.
            labels: (B, tokens), the text to predict, -100 where there is none; default: `input_ids`.
            loss_weight: (B, L), weight of each timestep's losses.
            return_loss: whether to compute losses.
            use_cache: whether to return the cache; by default as configured for text, but for training.
            logits_to_keep: compute logits for so many last tokens only; 0 for all.
            kwargs: as for transformers' causal language models: `output_hidden_states`, `output_attentions`,
                `return_dict`, and for the loss of text `shift_labels`, (B, tokens), the token to predict from each,
                and `num_items_in_batch`, what the sum of the losses is divided by.

        Raises:
            ValueError: if not exactly one kind of observation and one kind of action come with rewards, or sizes do
                not fit.
        """
        is_text = input_ids is not None or inputs_embeds is not None or pixel_values is not None
        if use_cache is None:
            use_cache = is_text and self.config.use_cache and not self.training
        trunk_options = {
            "position_ids": position_ids,
            "cache": cache,
            "use_cache": use_cache,
            **kwargs,
        }
        if is_text:
            if input_ids is not None and inputs_embeds is not None:
                raise ValueError("expected input_ids or inputs_embeds, got both")
            _check_shapes(1, input_ids=input_ids, inputs_embeds=inputs_embeds, pixel_values=pixel_values, labels=labels)
            if inputs_embeds is None and input_ids is not None:
                inputs_embeds = self.embed_tokens("input_ids", input_ids)
            if pixel_values is not None:
                patches = self.embed_images(pixel_values)
                inputs_embeds = patches if inputs_embeds is None else torch.cat([patches, inputs_embeds], dim=1)
            labels = input_ids if labels is None else labels
            return self._forward_text(
                inputs_embeds, attention_mask, labels if return_loss else None, logits_to_keep, trunk_options
            )
        trajectories = {
            "continuous_observations": continuous_observations,
            "discrete_observations": discrete_observations,
            "image_observations": image_observations,
            "continuous_actions": continuous_actions,
            "discrete_actions": discrete_actions,
            "rewards": rewards,
        }
        _check_shapes(2, **trajectories, attention_mask=attention_mask, loss_weight=loss_weight)
        prompt = None
        if prompt_input_ids is not None:
            _check_shapes(1, prompt_input_ids=prompt_input_ids, rewards=rewards)
            if prompt_attention_mask is None:
                prompt_attention_mask = torch.ones_like(prompt_input_ids)
            prompt = (prompt_input_ids, prompt_attention_mask)
        return self._forward_trajectories(trajectories, prompt, attention_mask, loss_weight, return_loss, trunk_options)

    def _forward_trajectories(
        self,
        inputs: dict[str, Tensor | None],
        prompt: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None,
        loss_weight: Tensor | None,
        return_loss: bool,
        trunk_options: dict[str, Any],
    ) -> JatOutput:
        # 1. Tokens: observation, action, observation, ..., behind the prompt.
        packs = attention_mask is not None and self._packs(trunk_options)
        tokens = self.embed_trajectories(inputs, attention_mask if packs else None)
        per_timestep = self.config.tokens_per_timestep
        token_mask = attention_mask.repeat_interleave(per_timestep, dim=1) if attention_mask is not None else None
        length = tokens.shape[1]
        if prompt is not None:
            prompt_ids, prompt_mask = prompt
            if token_mask is None:
                token_mask = torch.ones(tokens.shape[:2], dtype=prompt_mask.dtype, device=tokens.device)
            tokens = torch.cat([self.embed_tokens("prompt_input_ids", prompt_ids), tokens], dim=1)
            token_mask = torch.cat([prompt_mask, token_mask], dim=1)
            # The padding of a shorter prompt takes no positions.
            trunk_options = {**trunk_options, "position_ids": (token_mask.cumsum(dim=1) - 1).clamp(min=0)}

        # 2. Trunk.
        if packs:
            outputs = self.transformer.forward_packed(tokens, token_mask)
        else:
            outputs = self.transformer(tokens, token_mask, **trunk_options)
        hidden_states = outputs.last_hidden_state[:, -length:].unflatten(1, (-1, per_timestep))
        at_observations, at_actions = hidden_states[:, :, 0], hidden_states[:, :, -1]

        # 3. Actions from the observation tokens, the next observations from the action tokens, if there are any.
        pred_actions = self._decode_actions(at_observations, inputs)
        pred_observations = self._decode_observations(at_actions, inputs)

        # 4. Losses.
        losses = {}
        if return_loss:
            action_errors = self._action_errors(pred_actions, inputs, attention_mask, loss_weight)
            observation_errors = self._observation_errors(pred_observations, inputs, loss_weight)
            later_mask = attention_mask[:, 1:] if attention_mask is not None else None
            observation_loss = masked_mean(observation_errors, later_mask)
            action_loss = masked_mean(action_errors, attention_mask)
            losses = {
                "loss": self._weigh(observation_loss, action_loss),
                "observation_loss": observation_loss,
                "action_loss": action_loss,
                "row_losses": self._weigh(
                    masked_mean(observation_errors.detach(), later_mask, dim=1),
                    masked_mean(action_errors.detach(), attention_mask, dim=1),
                ),
            }
        if inputs["continuous_observations"] is not None and pred_observations is not None:
            pred_observations = pred_observations[..., : inputs["continuous_observations"].shape[-1]]
        if inputs["continuous_actions"] is not None and self.config.continuous_action_head == "regression":
            pred_actions = pred_actions[..., : inputs["continuous_actions"].shape[-1]]
        return JatOutput(
            **losses,
            pred_observations=pred_observations,
            pred_actions=pred_actions,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _packs(self, trunk_options: dict[str, Any]) -> bool:
        """Whether to spare padding its computations, which would be most of a training on short episodes."""
        # A caller that asks for these wants them as its rows are.
        asked = {name: trunk_options.get(name) for name in ("position_ids", "cache", "use_cache")}
        asked |= {name: trunk_options.get(name, getattr(self.config, name)) for name in _RECORDED}
        return (
            self.training
            and self.config._attn_implementation in ("sdpa", "eager")
            and not torch.compiler.is_compiling()
            and not any(value is not None and value is not False for value in asked.values())
        )

    def _decode_actions(self, at_observations: Tensor, inputs: dict[str, Tensor | None]) -> Tensor:
        kind = _given(_ACTION_KINDS, inputs)
        if kind == "discrete_actions":
            return self.single_discrete_decoder(at_observations)
        if self.config.continuous_action_head == "discretized":
            return self.discretized_action_decoder(at_observations, inputs[kind].shape[-1])
        return self.continuous_decoder(at_observations)

    def _decode_observations(self, at_actions: Tensor, inputs: dict[str, Tensor | None]) -> Tensor | None:
        if not self.config.observation_loss_coef:
            return None
        if inputs["continuous_observations"] is not None:
            return self.continuous_decoder(at_actions)
        if inputs["image_observations"] is not None:
            return self.image_decoder(at_actions)
        return None

    def _weigh(self, observation_loss: Tensor, action_loss: Tensor) -> Tensor:
        return self.config.observation_loss_coef * observation_loss + self.config.action_loss_coef * action_loss

    def _observation_errors(
        self, predicted: Tensor | None, inputs: dict[str, Tensor | None], weight: Tensor | None
    ) -> Tensor:
        """(B, L - 1), mean squared error between the prediction at timestep t and observation t + 1."""
        if predicted is None:
            return torch.zeros_like(inputs["rewards"][:, 1:], dtype=torch.float32)
        if inputs["continuous_observations"] is not None:
            target = _with_rewards(inputs["continuous_observations"], inputs["rewards"])
            target = cyclic_expand(target.to(self.dtype), self.config.max_continuous_size)
        else:
            target = self._rescale(inputs["image_observations"])
        errors = F.mse_loss(predicted[:, :-1].float(), target[:, 1:].float(), reduction="none").flatten(2).mean(-1)
        return errors * weight[:, 1:] if weight is not None else errors

    def _action_errors(
        self, predicted: Tensor, inputs: dict[str, Tensor | None], mask: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        """(B, L), mean squared error of continuous actions, cross-entropy of discrete and discretized ones."""
        actions = inputs["continuous_actions"]
        if actions is None:
            errors = CrossEntropy.apply(predicted.flatten(0, 1), inputs["discrete_actions"].flatten())
            errors = errors.view(predicted.shape[:2])
            if weight is not None and self.config.discrete_loss_weighting == "batch_mean":
                weight = masked_mean(weight, mask)
        elif self.config.continuous_action_head == "discretized":
            bins = self.discretized_action_decoder.encode(actions.float())
            errors = CrossEntropy.apply(predicted.flatten(0, -2), bins.flatten()).view(bins.shape).mean(-1)
        else:
            target = cyclic_expand(actions.to(self.dtype), self.config.max_continuous_size)
            errors = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(-1)
        return errors * weight if weight is not None else errors

    def _forward_text(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None,
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        trunk_options: dict[str, Any],
    ) -> JatOutput:
        token_mask = attention_mask
        if isinstance(attention_mask, Tensor):
            # The mask may cover the text only; image patches, new or cached, stand before it.
            past = trunk_options["cache"]
            patches = embeddings.shape[1] + (past.get_seq_length() if past is not None else 0) - attention_mask.shape[1]
            token_mask = F.pad(attention_mask, (patches, 0), value=1)

        outputs = self.transformer(embeddings, token_mask, **trunk_options)
        logits = self.single_discrete_decoder(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))

        losses = {} if labels is None else self._text_losses(logits, labels, token_mask, **trunk_options)
        return JatOutput(
            **losses,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _text_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        token_mask: Tensor | None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Cross-entropy of each token of the text, predicted from the one before it."""
        if not self.config.first_token_loss:
            labels = F.pad(labels[:, 1:], (1, 0), value=-100)
        labels = F.pad(labels, (logits.shape[1] - labels.shape[1], 0), value=-100)
        if token_mask is not None:
            # Padding is not predicted and predicts nothing.
            real = token_mask[:, -labels.shape[1] :] != 0
            labels = labels.masked_fill(~(real & F.pad(real[:, :-1], (1, 0), value=True)), -100)
        targets = F.pad(labels[:, 1:], (0, 1), value=-100) if shift_labels is None else shift_labels
        errors = CrossEntropy.apply(logits.flatten(0, 1), targets.flatten()).view(targets.shape)
        predicted = targets != -100
        if num_items_in_batch is None:
            num_items_in_batch = predicted.sum().clamp(min=1)
        return {
            "loss": errors.sum() / num_items_in_batch,
            "row_losses": masked_mean(errors.detach(), predicted, dim=1),
        }

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        pixel_values: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if pixel_values is not None:
            # The patches take the first positions; once they are in the cache the image is not needed again.
            patches = self.config.num_patches
            position_ids = position_ids + patches
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (patches, 0), value=1)
            if cache is None or cache.get_seq_length() == 0:
                image = self.embed_images(pixel_values)
                inputs_embeds = torch.cat([image, self.embed_tokens("input_ids", input_ids)], dim=1)
                positions = torch.arange(patches, device=position_ids.device).expand(len(position_ids), -1)
                position_ids = torch.cat([positions, position_ids], dim=1)
                next_sequence_length, is_first_iteration = None, True
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            position_ids=position_ids,
            **kwargs,
        )
        return {**inputs, "return_loss": False}

    def _prepare_model_inputs(
        self, inputs: Tensor | None, bos_token_id: Tensor | None, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, str | None, dict[str, Any]]:
        """A text may begin with nothing but an image, if the model has learnt to."""
        no_text = inputs is None and model_kwargs.get("input_ids") is None
        if no_text and model_kwargs.get("pixel_values") is not None and self.config.first_token_loss:
            pixel_values = model_kwargs.pop("pixel_values")
            model_kwargs["inputs_embeds"] = self.embed_images(pixel_values)
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """A static cache has room for the patches too."""
        if model_kwargs.get("pixel_values") is not None:
            max_cache_length += self.config.num_patches
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    # Acting

    @torch.no_grad()
    def reset(
        self,
        action_space: Any,
        num_envs: int | None = None,
        prompt: dict[str, Tensor] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> JatContext:
        """Begin to act in one environment, or in `num_envs` at once.

        Args:
            action_space: a gymnasium Box or Discrete; of a vector environment, its `single_action_space`.
            num_envs: number of environments; None for one, without the batch dimension.
            prompt: what tells the agent its task, from the processor: an instruction
                (`processor(text="open the faucet", return_tensors="pt")`), a demonstration (observations, actions and
                rewards of an episode), or the keys of both. It is never forgotten.
            seeds: of the actions that are sampled, one for each environment; by default torch's own seed decides.

        Returns:
            The context that `get_next_action` uses unless it is handed another one.

        Raises:
            ValueError: if the action space is of another kind, the prompt is longer than the model's positions, or a
                demonstration's actions are outside the action space.
        """
        self.context = JatContext(self, action_space, num_envs, prompt, seeds)
        return self.context

    @torch.inference_mode()
    def get_next_action(
        self,
        inputs: dict[str, Tensor],
        context: JatContext | None = None,
        deterministic: bool = False,
        context_window: int | None = None,
        temperature: float = 1.0,
    ) -> np.ndarray | int:
        """Choose the next action of one environment, or of every environment of a batch.

        Args:
            inputs: one timestep, from `processor(observation, reward=reward)`.
            context: what the agent remembers, from `reset`; by default the one that was started last.
            deterministic: take the likeliest of discrete or discretized actions rather than sample one.
            context_window: timesteps that the agent looks back at most; by default the configuration's, or all that
                the model has positions for. See [`JatContext`] for what happens beyond.
            temperature: divides the logits of those actions before sampling; above 0.

        Returns:
            The action, ready for `env.step`: a float32 array inside the Box, or an int. For `num_envs` environments
            an array with one row each.

        Raises:
            ValueError: if no episode was begun, or the inputs' batch is not the context's.
        """
        context = self._check_context(inputs, context or self.context)
        if context_window is not None and context_window < 1:
            raise ValueError(f"context_window must be at least 1 timestep, got {context_window}")
        if temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, got {temperature}: for the likeliest action pass deterministic"
            )
        window = min(context.window, context_window or self.config.context_window or context.window)

        device = self.device  # which transformers looks for among the weights
        inputs = {key: value.to(device) for key, value in inputs.items()}
        begun = (context.timesteps > 0)[:, None]
        observation = self.embed_observations({**inputs, "rewards": inputs["rewards"] * begun})
        tokens = observation
        if self.config.tokens_per_timestep == 2:
            action = self.embed_actions({context.action_kind: context.actions[:, None]})
            tokens = torch.cat([action, observation], dim=1)
        hidden_state = context.append(tokens, window)

        def choose(logits: Tensor) -> Tensor:
            if deterministic:
                return logits.argmax(-1)
            return context.sample(logits / temperature)

        if context.action_kind == "continuous_actions":
            size = context.action_space.shape[0]
            if self.config.continuous_action_head == "discretized":
                decoder = self.discretized_action_decoder
                predicted = decoder.decode(choose(decoder(hidden_state, size)))
            else:
                predicted = _decode(self.continuous_decoder, hidden_state, 0, size).float()
            executed = predicted.clamp(context.low, context.high)
            context.actions = (predicted if self.config.action_feedback == "predicted" else executed).to(self.dtype)
            chosen = executed.cpu().numpy()
        else:
            first, number = int(context.action_space.start), int(context.action_space.n)
            context.actions = first + choose(_decode(self.single_discrete_decoder, hidden_state, first, number))
            chosen = context.actions.cpu().numpy()
        if context.num_envs is not None:
            return chosen
        return chosen[0] if context.action_kind == "continuous_actions" else int(chosen[0])

    def _check_context(self, inputs: dict[str, Tensor], context: JatContext | None) -> JatContext:
        if context is None:
            raise ValueError("no episode was begun: call model.reset(env.action_space) first")
        if context.model is not self:
            raise ValueError("the context belongs to another model: start one with this model's reset")
        rows = len(inputs[_given(_OBSERVATION_KINDS, inputs)])
        if rows != len(context.timesteps):
            raise ValueError(f"expected observations of {len(context.timesteps)} environments, got {rows}")
        return context


def _decode(decoder: nn.Linear, hidden_state: Tensor, first: int, number: int) -> Tensor:
    """Some of a decoder's outputs, without computing the others."""
    some = slice(first, first + number)
    return F.linear(hidden_state, decoder.weight[some], decoder.bias[some] if decoder.bias is not None else None)


JatModelForCausalLM.register_for_auto_class("AutoModelForCausalLM")
