"""Configuration of the JAT model."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# What the published checkpoints were trained with, where it differs from the defaults below. A configuration file
# without one of these fields is a published one.
PUBLISHED_BEHAVIOUR = {
    "discrete_loss_weighting": "batch_mean",
    "image_rewards": False,
    "action_feedback": "predicted",
    "first_token_loss": False,
    "normed_embeddings": False,
}


@strict
class JatConfig(PreTrainedConfig):
    """Sizes and choices of a [`JatModelForCausalLM`].

    The defaults are the published size (Gallouédec et al. 2024, arXiv 2402.09844): 190M parameters, or 193M with the
    decoder of discrete observations that the published files hold and nothing uses.

    Args:
        vocab_size: number of tokens. Text, discrete observations and discrete actions share them.
        max_position_embeddings: longest sequence in tokens; a timestep has two, its observation and its action, or
            one where actions are not seen.
        context_window: timesteps that an acting agent looks back at most unless told otherwise: those of the windows
            that it was trained on. Where some positions were for prompts, no window's end was ever at the last ones.
            Default, as published: all that there are positions for.
        hidden_size: width of the trunk.
        num_layers: number of blocks of the trunk.
        num_heads: attention heads of a block.
        attention_types: pattern of global and local attention, as in GPT-Neo: `[[["global", "local"], 6]]` is six
            times a global and a local block. Default: the two in turn over all blocks.
        window_size: tokens that a local block looks back, the current one included.
        intermediate_size: width of a block's feed-forward layer; default 4 times `hidden_size`.
        activation_function: of the feed-forward layers.
        resid_dropout: dropout after attention and feed-forward layers.
        embed_dropout: dropout after the embeddings.
        attention_dropout: dropout of the attention weights.
        layer_norm_epsilon: of all layer norms.
        initializer_range: standard deviation of the weights at the start.
        max_continuous_size: longest continuous observation with its reward, and longest continuous action.
        mu_law_features: whether continuous values are encoded together with their logarithms (Gato's mu-law), so that
            small ones, such as a pole's angle, can be told apart; published: no.
        num_frequencies: continuous values are encoded together with their sines and cosines at so many frequencies, pi,
            2 pi, 4 pi and so on (Tancik et al. 2020), so that small differences between large ones, such as the
            places of a gripper and a handle, count; published: 0.
        max_discrete_value: length of a discrete observation, mission tokens included. The name is the published one.
        discrete_embedding_size: width of each of its values, before they become one token; default, as published, a
            50th of `hidden_size`.
        mission_length: how many of these values, the last ones, are tokens of the mission.
        mission_filters: so many filters are made of the mission and applied to each cell of the values before it, three
            in a cell as in MiniGrid (Misra et al. 2018, arXiv 1809.00786), so that the model sees where what the
            mission names is; published: 0.
        observation_channels: channels of an image observation (Atari: 4 stacked frames of 84x84).
        image_encoder_width: channels of the first of its encoder's three convolutions; the next ones have twice and
            four times as many. Published: 32; with 16 a frame takes a third of the products.
        image_size: side of the square images that go with text, in pixels.
        patch_size: side of their square patches; each becomes a token.
        num_channels: channels of those images.
        normed_embeddings: whether what the encoders make of observations, continuous actions and patches is layer
            normed. If it is not, as published, it grows in training to hundreds of times the size of the positions,
            which then can hardly be seen beside it, and of what the first blocks add to it.
        observation_loss_coef: weight of the observation loss. With 0 the model does not predict observations: it has
            no decoder of images, and learns from them in half of the time.
        action_loss_coef: weight of the action loss.
        discrete_loss_weighting: how `loss_weight` weighs the loss of discrete actions: "per_timestep" each by its own
            weight, or as published "batch_mean", all by the mean weight of the batch.
        image_rewards: whether an image observation's embedding carries the reward, as the other kinds' do.
        action_feedback: what the agent sees of its own continuous actions: the "executed" one, inside the bounds, as
            in the data; as published the "predicted" one; or "none" of any actions, also in training, as an expert's
            next action is often so near its last one that the model learns to repeat itself (Wen et al. 2020).
            A timestep is then its observation alone.
        first_token_loss: whether the first token of a text behind an image is predicted from the image, so that a
            caption can be written from nothing else; as published it has no loss.
        continuous_action_head: how continuous actions are predicted: as published by "regression" with a mean squared
            error, or "discretized" into bins with a cross-entropy, as in Gato (Reed et al. 2022, section 2.1).
        num_action_bins: bins of each value of a discretized action; Gato's number.
    """

    model_type = "jat"
    attribute_map = {
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "sliding_window": "window_size",
    }

    vocab_size: int = 50257
    max_position_embeddings: int = 512
    context_window: int | None = None
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    attention_types: list | tuple | None = None
    window_size: int = 256
    intermediate_size: int | None = None
    activation_function: str = "gelu_new"
    resid_dropout: float | int = 0.0
    embed_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    max_continuous_size: int = 377
    mu_law_features: bool = False
    num_frequencies: int = 0
    max_discrete_value: int = 212
    discrete_embedding_size: int | None = None
    mission_length: int = 64
    mission_filters: int = 0
    observation_channels: int = 4
    image_encoder_width: int = 32
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    normed_embeddings: bool = True
    observation_loss_coef: float | int = 0.005
    action_loss_coef: float | int = 0.995
    discrete_loss_weighting: str = "per_timestep"
    image_rewards: bool = True
    action_feedback: str = "executed"
    first_token_loss: bool = True
    continuous_action_head: str = "regression"
    num_action_bins: int = 1024
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.attention_types is None:
            pairs, rest = divmod(self.num_layers, 2)
            self.attention_types = [[["global", "local"], pairs]] * bool(pairs) + [[["global"], 1]] * rest
        self.attention_layers = [kind for pattern, times in self.attention_types for kind in pattern * times]
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.discrete_embedding_size is None:
            self.discrete_embedding_size = self.hidden_size // 50
        kwargs.pop("attention_layers", None)  # published files hold it beside attention_types
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse sizes that do not fit together, where the configuration is made."""
        faults = []
        if self.hidden_size % self.num_heads:
            faults.append(f"hidden_size ({self.hidden_size}) must be divisible by num_heads ({self.num_heads})")
        if self.context_window is not None and self.context_window < 1:
            faults.append(f"context_window must be at least 1 timestep, got {self.context_window}")
        if self.discrete_embedding_size < 1:
            faults.append(
                f"discrete_embedding_size must be at least 1, got {self.discrete_embedding_size} "
                f"(default: hidden_size // 50, here {self.hidden_size} // 50)"
            )
        if self.mission_filters and not 0 < self.mission_length < self.max_discrete_value:
            faults.append(
                f"mission_length must be at least 1 and less than max_discrete_value ({self.max_discrete_value}) for "
                f"mission_filters, got {self.mission_length}"
            )
        if len(self.attention_layers) != self.num_layers:
            faults.append(
                f"attention_types {self.attention_types} describe {len(self.attention_layers)} layers, expected "
                f"num_layers = {self.num_layers}"
            )
        if unknown := set(self.attention_layers) - {"global", "local"}:
            faults.append(f"attention_types must hold 'global' and 'local' only, got {sorted(unknown)}")
        if self.image_encoder_width < 8:
            faults.append(f"image_encoder_width must be at least 8, got {self.image_encoder_width}")
        if self.image_size % self.patch_size:
            faults.append(f"image_size ({self.image_size}) must be divisible by patch_size ({self.patch_size})")
        for field, choices in (
            ("discrete_loss_weighting", ("per_timestep", "batch_mean")),
            ("action_feedback", ("executed", "predicted", "none")),
            ("continuous_action_head", ("regression", "discretized")),
        ):
            if getattr(self, field) not in choices:
                faults.append(f"{field} must be {' or '.join(map(repr, choices))}, got {getattr(self, field)!r}")
        if faults:
            raise ValueError("JatConfig: " + "; ".join(faults))

    @property
    def layer_types(self) -> list[str]:
        """Kinds of the blocks by transformers' names, which its caches go by."""
        return ["sliding_attention" if kind == "local" else "full_attention" for kind in self.attention_layers]

    @property
    def tokens_per_timestep(self) -> int:
        """An observation and its action, or only the observation."""
        return 1 if self.action_feedback == "none" else 2

    @property
    def num_patches(self) -> int:
        """Tokens of an image that goes with text."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "JatConfig":
        return super().from_dict({**PUBLISHED_BEHAVIOUR, **config_dict}, **kwargs)

    @classmethod
    def mini(cls, **kwargs: Any) -> "JatConfig":
        """8 layers of width 256: trains on two cores."""
        return cls(**{"hidden_size": 256, "num_layers": 8, "num_heads": 8, **kwargs})

    @classmethod
    def small(cls, **kwargs: Any) -> "JatConfig":
        """12 layers of width 768: the published agent."""
        return cls(**kwargs)

    @classmethod
    def medium(cls, **kwargs: Any) -> "JatConfig":
        """24 layers of width 2048 and 1,024 positions, as the authors planned it."""
        sizes = {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "max_position_embeddings": 1024}
        return cls(**{**sizes, **kwargs})

    @classmethod
    def large(cls, **kwargs: Any) -> "JatConfig":
        """32 layers of width 2560 and 2,048 positions, as the authors planned it."""
        sizes = {"hidden_size": 2560, "num_layers": 32, "num_heads": 20, "max_position_embeddings": 2048}
        return cls(**{**sizes, **kwargs})


JatConfig.register_for_auto_class()
