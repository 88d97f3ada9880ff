"""The JAT processor: observations, actions, rewards, text and images become what the model takes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, CLIPImageProcessorPil, GPT2Tokenizer
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Columns of data sets that say where a row lies in its episode, which is nothing to the model.
_PLACES = ("episode_index", "first_timestep")
# What a row holds, by column: its type and its dimensions.
_COLUMNS = {
    "continuous_observations": (np.float32, ("timesteps", "size")),
    "discrete_observations": (np.int64, ("timesteps", "size")),
    "image_observations": (np.uint8, ("timesteps", "height", "width", "channels")),
    "continuous_actions": (np.float32, ("timesteps", "size")),
    "discrete_actions": (np.int64, ("timesteps",)),
    "rewards": (np.float32, ("timesteps",)),
}
_OBSERVATIONS = ("continuous_observations", "discrete_observations", "image_observations")

Rows = dict[str, list[np.ndarray]]  # column -> one array of shape (timesteps, ...) for each row


class JatProcessorKwargs(TypedDict, total=False):
    """How sequences become a batch.

    Attributes:
        padding: "longest" or True, "max_length", or False, the default. Padding repeats a row's first element, and adds
            the key `attention_mask`.
        truncation: True or "lossy" cuts what is too long, "preserve" turns the rest into rows of their own; default
            False.
        truncation_side: the side that is cut, or where the short remainder lies: "right", the default, or "left".
        max_length: in tokens, `tokens_per_timestep` for a timestep; default: the tokenizer's `model_max_length`.
        return_tensors: "pt" or "np"; default None: rows of different lengths stay a list of arrays.
    """

    padding: bool | str
    truncation: bool | str
    truncation_side: str
    max_length: int | None
    return_tensors: str | None


class JatProcessor(ProcessorMixin):
    """Prepares single timesteps for acting, and batches of trajectories or text for training.

    Args:
        image_processor: of images that go with text.
        tokenizer: of text and of text observations.
        mission_length: tokens of a text observation, which stand behind the discrete observation's values; a shorter
            one is padded, a longer one cut.
        image_seq_length: tokens that an image takes in the model.
        max_continuous_size: most values of a continuous observation with its reward, and of a continuous action.
        max_discrete_size: values of a discrete observation, those of its text included.
        rescale_observations: turn the pixels of image observations into floats in -1..1, as published; otherwise they
            stay uint8, a quarter of the memory, and the model does it.
        default_kwargs: defaults of this processor for the options of a call, see [`JatProcessorKwargs`].
        tokens_per_timestep: tokens that a timestep takes in the model.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        mission_length: int = 64,
        image_seq_length: int = 196,
        max_continuous_size: int = 377,
        max_discrete_size: int = 212,
        rescale_observations: bool = True,
        default_kwargs: JatProcessorKwargs | None = None,
        tokens_per_timestep: int = 2,
    ) -> None:
        self.mission_length = mission_length
        self.image_seq_length = image_seq_length
        self.tokens_per_timestep = tokens_per_timestep
        self.max_continuous_size = max_continuous_size
        self.max_discrete_size = max_discrete_size
        self.rescale_observations = rescale_observations
        self.default_kwargs = default_kwargs or {}
        self._options(self.default_kwargs)
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        vocab_size: int = 1024,
        model_max_length: int = 512,
        image_size: int = 224,
        **kwargs: Any,
    ) -> "JatProcessor":
        """A new processor with a byte-level BPE learned from texts, for work without a download.

        Args:
            texts: what the vocabulary is learned from.
            vocab_size: most tokens, at least 257: every byte and the end of text.
            model_max_length: positions of the model, in tokens.
            image_size: side of the square into which images that go with text are squeezed, in pixels.
            kwargs: sizes, as in the constructor.
        """
        tokenizer = GPT2Tokenizer().train_new_from_iterator(texts, vocab_size, show_progress=False)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.model_max_length = model_max_length
        # Published: cropped to a square, without the edges at which games show their lives.
        image_processor = CLIPImageProcessorPil(size={"height": image_size, "width": image_size}, do_center_crop=False)
        return cls(image_processor, tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        prompt = ["prompt_input_ids", "prompt_attention_mask"]
        return ["input_ids", "pixel_values", *_COLUMNS, *prompt, "attention_mask"]

    def __call__(
        self,
        observation: Mapping[str, Any] | None = None,
        *,
        reward: float | np.ndarray | None = None,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        continuous_observations: Any = None,
        discrete_observations: Any = None,
        text_observations: Any = None,
        image_observations: Any = None,
        continuous_actions: Any = None,
        discrete_actions: Any = None,
        rewards: Any = None,
        prompts: Sequence[str | None] | None = None,
        task: str | None = None,
        **kwargs: Unpack[JatProcessorKwargs],
    ) -> BatchFeature:
        """Prepare one timestep, or a batch of sequences.

        `processor(observation, reward=reward)` is one timestep of one environment, or of as many as the observation
        holds: the result is tensors of shape (environments, 1, ...) for `model.get_next_action`.

        With the other arguments it is a batch of trajectories, or of text with or without images.

        Sequences may be lists, arrays, tensors or what a data set holds, in any of its formats with rows.

        Args:
            observation: as an environment returns it, keys in the singular.
            reward: the reward that came with it; None for 0, at the start.
            text: one text or several.
            images: one image for each text.
            continuous_observations: a row for each trajectory, (L, size) each.
            discrete_observations: the same, of integers.
            text_observations: a str for each timestep, beside discrete observations.
            image_observations: (L, height, width, channels) each, or with the channels before height and width where
                they are fewer; uint8 or PIL images; floats are taken as 0..1.
            continuous_actions: (L, size) each.
            discrete_actions: (L,) each.
            rewards: (L,) each, each one received before the observation beside it.
            prompts: a text for each trajectory, such as its task's instruction, or None for a trajectory without.
                They are padded on the left; no key is added where there is no prompt at all.
            task: what errors name.
            kwargs: see [`JatProcessorKwargs`]; what is not given is as in `default_kwargs`.

        Raises:
            ValueError: naming every key that is missing, unknown, of the wrong size or type, ragged or not finite.
        """
        options = self._options(kwargs)
        truncation, max_length = options["truncation"], options["max_length"]
        if observation is not None:
            return self._timestep(observation, reward, task)
        columns = {
            "continuous_observations": continuous_observations,
            "discrete_observations": discrete_observations,
            "text_observations": text_observations,
            "image_observations": image_observations,
            "continuous_actions": continuous_actions,
            "discrete_actions": discrete_actions,
            "rewards": rewards,
        }
        columns = {column: values for column, values in columns.items() if values is not None}
        if columns and (text is not None or images is not None):
            raise ValueError(f"a batch holds trajectories or text, got text or images beside {', '.join(columns)}")
        if not columns and text is None and images is None:
            raise ValueError(
                f"nothing to process: expected an observation, text, images or any of {', '.join(_COLUMNS)}"
            )
        if max_length is None:
            max_length = self.tokenizer.model_max_length

        pixel_values = None
        if columns:
            rows = self._encode(columns, task)
            max_length //= self.tokens_per_timestep
        else:
            rows, pixel_values = self._encode_text(text, images)
            if pixel_values is not None:
                max_length -= self.image_seq_length
        if prompts is not None and (not columns or truncation == "preserve"):
            raise ValueError(
                "prompts stand before whole trajectories: pass none with text, or with truncation='preserve'"
            )
        if prompts is not None and len(prompts) != len(next(iter(rows.values()))):
            raise ValueError(f"expected a prompt for each of {len(next(iter(rows.values())))} rows, got {len(prompts)}")
        rows = _truncate(rows, truncation, options["truncation_side"], max_length)
        rows = _pad(rows, options["padding"], max_length)
        batch = self._as_batch({**rows, **self._encode_prompts(prompts)}, options["return_tensors"])
        if pixel_values is not None:
            batch["pixel_values"] = pixel_values
        return BatchFeature(batch, tensor_type=options["return_tensors"])

    def _options(self, kwargs: JatProcessorKwargs) -> dict[str, Any]:
        """The options of a call, given or default."""
        known = {
            "padding": False,
            "truncation": False,
            "truncation_side": "right",
            "max_length": None,
            "return_tensors": None,
        }
        kwargs = {name: value for name, value in kwargs.items() if name not in _PLACES}
        if unknown := sorted(set(kwargs) - set(known)):
            raise TypeError(f"unknown options {', '.join(unknown)}: expected columns or some of {', '.join(known)}")
        return {**known, **self.default_kwargs, **kwargs}

    def pad(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        prompts: Sequence[str | None] | None = None,
        task: str | None = None,
        **kwargs: Unpack[JatProcessorKwargs],
    ) -> BatchFeature:
        """Collate rows of one kind, such as a data set's, into a batch; padded, and of tensors unless told otherwise.

        Args:
            rows: each maps columns in the plural to a sequence over timesteps.
            prompts: as in the call.
            task: as in the call.
            kwargs: as in the call, but that `padding` is True and `return_tensors` "pt" by default.

        Raises:
            ValueError: if rows hold different columns, as a batch of several kinds of task would.
        """
        if not rows:
            raise ValueError("an empty batch: expected at least one row")
        kinds = {tuple(sorted(row)) for row in rows}
        if len(kinds) > 1:
            listed = " and ".join(f"({', '.join(kind)})" for kind in sorted(kinds))
            raise ValueError(f"a batch must hold rows of one kind, got rows with the columns {listed}")
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        options: JatProcessorKwargs = {"padding": True, "return_tensors": "pt", **self.default_kwargs, **kwargs}
        return self(**columns, prompts=prompts, task=task, **options)

    def _timestep(
        self, observation: Mapping[str, Any], reward: float | np.ndarray | None, task: str | None
    ) -> BatchFeature:
        """One timestep of one or several environments: rows of length 1."""
        known = [column.removesuffix("s") for column in (*_OBSERVATIONS, "text_observations")]
        if unknown := sorted(set(observation) - set(known)):
            raise ValueError(f"unknown observation keys {unknown}: expected some of {known}")
        columns = {}
        for key, value in observation.items():
            if key == "text_observation":
                columns[f"{key}s"] = [[value]] if isinstance(value, str) else [[mission] for mission in value]
            else:
                array = _as_array(value)
                dimensions = _COLUMNS[f"{key}s"][1][1:]
                if array.ndim not in (len(dimensions), len(dimensions) + 1):
                    raise ValueError(
                        f"{key}: expected shape ({', '.join(dimensions)}), or (environments, {', '.join(dimensions)}), "
                        f"got {array.dtype} of shape {array.shape}"
                    )
                columns[f"{key}s"] = array[None, None] if array.ndim == len(dimensions) else array[:, None]
        environments = len(next(iter(columns.values()), []))
        rewards = np.zeros(environments) if reward is None else _as_array(reward).reshape(-1)
        rows = self._encode({**columns, "rewards": rewards[:, None]}, task)
        return BatchFeature(self._as_batch(rows, "pt"), tensor_type="pt")

    def _encode(self, columns: Mapping[str, Any], task: str | None) -> Rows:
        """Trajectories as arrays, missions behind the discrete observations.

        Refuses what the model could not take, naming every fault.
        """
        rows: Rows = {}
        faults = []
        for column in (column for column in _COLUMNS if column in columns):
            arrays, misfits = [], []
            for index, sequence in enumerate(columns[column]):
                try:
                    arrays.append(_encode_row(column, sequence))
                except (TypeError, ValueError) as error:
                    misfits.append(f"{column}, row {index}: {error}")
            if not misfits:
                rows[column] = arrays
            faults += misfits
        if "text_observations" in columns and not faults:
            if "discrete_observations" not in rows:
                faults.append("text_observations need discrete_observations beside them")
            else:
                missions = self._encode_missions(columns["text_observations"])
                lengths, expected = [len(row) for row in missions], [len(row) for row in rows["discrete_observations"]]
                if lengths != expected:
                    faults.append(f"text_observations: expected {expected} timesteps, got {lengths}")
                else:
                    pairs = zip(rows["discrete_observations"], missions, strict=True)
                    rows["discrete_observations"] = [np.concatenate(pair, axis=-1) for pair in pairs]
        faults += self._faults(rows, set(columns))
        if faults:
            raise ValueError((f"{task}: " if task else "") + "; ".join(faults))
        if "discrete_observations" in rows:
            rows["discrete_observations"] = [self._fill(array) for array in rows["discrete_observations"]]
        return rows

    def _fill(self, observations: np.ndarray) -> np.ndarray:
        """Discrete observations of fewer values than the model takes, and of no mission, filled up with padding."""
        missing = self.max_discrete_size - observations.shape[-1]
        if not missing:
            return observations
        return np.pad(observations, ((0, 0), (0, missing)), constant_values=self.tokenizer.pad_token_id)

    def _encode_missions(self, sequences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """(L, mission_length) tokens for each sequence; a mission that many timesteps have is tokenized once."""
        distinct = {mission: index for index, mission in enumerate(dict.fromkeys(chain.from_iterable(sequences)))}
        tokens = np.full((len(distinct), self.mission_length), self.tokenizer.pad_token_id, np.int64)
        encoded = self.tokenizer(list(distinct), verbose=False)["input_ids"] if distinct else []
        for row, ids in zip(tokens, encoded, strict=True):
            if len(ids) > self.mission_length:
                logger.warning_once(f"missions of more than {self.mission_length} tokens are cut")
            row[: len(ids)] = ids[: self.mission_length]
        return [tokens[[distinct[mission] for mission in missions]] for missions in sequences]

    def _encode_prompts(self, prompts: Sequence[str | None] | None) -> Rows:
        """Tokens padded on the left, so that the prompt's last token stands before the first observation."""
        if not prompts or not any(prompts):
            return {}
        tokens = [
            np.asarray(ids, np.int64) for ids in self.tokenizer([prompt or "" for prompt in prompts])["input_ids"]
        ]
        length = max(len(ids) for ids in tokens)
        return {
            "prompt_input_ids": [np.pad(ids.astype(np.int64), (length - len(ids), 0)) for ids in tokens],
            "prompt_attention_mask": [(np.arange(length) >= length - len(ids)).astype(np.int64) for ids in tokens],
        }

    def _encode_text(self, text: Any, images: Any) -> tuple[Rows, np.ndarray | None]:
        rows: Rows = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            rows["input_ids"] = [np.asarray(ids, np.int64) for ids in self.tokenizer(texts)["input_ids"]]
        pixel_values = None
        if images is not None:
            pixel_values = np.stack(self.image_processor(images)["pixel_values"])
            if text is not None and len(pixel_values) != len(rows["input_ids"]):
                raise ValueError(
                    f"expected one image for each text, got {len(pixel_values)} images and {len(texts)} texts"
                )
        return rows, pixel_values

    def _faults(self, rows: Rows, given: set[str]) -> list[str]:
        """What of trajectories does not fit together, or the model."""
        faults = []
        observations = [column for column in _OBSERVATIONS if column in given]
        if len(observations) > 1:
            faults.append(f"expected one kind of observation, got {' and '.join(observations)}")
        if observations and "rewards" not in given:
            faults.append(f"rewards are missing beside {observations[0]}")
        counts = {column: len(sequences) for column, sequences in rows.items()}
        if len(set(counts.values())) > 1:
            faults.append(f"columns have different numbers of rows: {counts}")
        else:
            for index, sequences in enumerate(zip(*rows.values(), strict=True)):
                lengths = dict(zip(rows, map(len, sequences), strict=True))
                if len(set(lengths.values())) > 1:
                    faults.append(f"row {index} is ragged: {lengths} timesteps")
                elif 0 in lengths.values():
                    faults.append(f"row {index} has no timestep")
        for column, sequences in rows.items():
            if len({array.shape[1:] for array in sequences}) > 1:
                faults.append(f"{column}: rows have different sizes {[array.shape[1:] for array in sequences]}")
            faults += _value_faults(column, sequences)
        for column, limit in (
            ("continuous_observations", self.max_continuous_size - 1),  # its reward takes one place
            ("continuous_actions", self.max_continuous_size),
            ("discrete_observations", self.max_discrete_size),
        ):
            size = max((array.shape[-1] for array in rows.get(column, [])), default=0)
            if size > limit:
                faults.append(f"{column}: at most {limit} values a timestep, got {size}")
        return faults

    def _as_batch(self, rows: Rows, return_tensors: str | None) -> dict[str, Any]:
        """Stack rows of one length; keep others as lists unless tensors are asked for. Images become floats last."""
        batch: dict[str, Any] = {}
        for column, sequences in rows.items():
            finish = self._rescale if column == "image_observations" else torch.from_numpy
            if len({array.shape for array in sequences}) == 1:
                stacked = finish(np.stack(sequences))
                batch[column] = stacked if return_tensors == "pt" else stacked.numpy()
            elif return_tensors is None:
                batch[column] = [finish(array).numpy() for array in sequences]
            else:
                raise ValueError(
                    f"{column}: rows of {[len(array) for array in sequences]} timesteps cannot become one tensor: pass "
                    "padding=True"
                )
        return batch

    def _rescale(self, images: np.ndarray) -> torch.Tensor:
        """Pixels of type uint8, or floats in 0..1, as floats in -1..1; or pixels as they are."""
        pixels = torch.from_numpy(images)
        if pixels.dtype == torch.uint8 and not self.rescale_observations:
            return pixels
        middle = 127.5 if pixels.dtype == torch.uint8 else 0.5
        floats = torch.empty(pixels.shape)
        # A few frames at a time, which stay in the processor's cache from one operation to the next.
        for part, target in zip(
            *(frames.view(-1, *images.shape[-3:]).split(32) for frames in (pixels, floats)), strict=True
        ):
            torch.div(part, middle, out=target).sub_(1)
        return floats


def _as_array(sequence: Any) -> np.ndarray:
    """A sequence of numbers, arrays, tensors or images as one array."""
    if isinstance(sequence, torch.Tensor):
        sequence = sequence.detach().cpu()
        return (sequence.float() if sequence.dtype == torch.bfloat16 else sequence).numpy()
    if isinstance(sequence, list | tuple) and len(sequence):
        if isinstance(sequence[0], torch.Tensor):
            return _as_array(torch.stack(list(sequence)))
        if isinstance(sequence[0], Image.Image):
            return np.stack([np.asarray(image) for image in sequence])
    array = np.asarray(sequence)
    return np.stack(list(array)) if array.dtype == object and array.ndim else array  # as pandas nests arrays


def _encode_row(column: str, sequence: Any) -> np.ndarray:
    """A row of a column as an array of its type, images with their channels first; refuses what would be garbled."""
    dtype, dimensions = _COLUMNS[column]
    try:
        array = _as_array(sequence)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_expected(column)}, got values that make no array ({error})") from error
    kinds = "biu" if dtype is np.int64 else "biuf"
    if array.ndim != len(dimensions) or array.dtype.kind not in kinds:
        raise ValueError(f"{_expected(column)}, got {array.dtype} of shape {array.shape}")
    if column != "image_observations":
        return array.astype(dtype, copy=False)
    if array.dtype != np.uint8:
        array = array.astype(np.float32, copy=False)
    channels_first = array.shape[1] < array.shape[3]
    if channels_first:
        return array
    return torch.from_numpy(np.require(array, requirements="W")).movedim(-1, 1).contiguous().numpy()


def _expected(column: str) -> str:
    dtype, dimensions = _COLUMNS[column]
    return f"expected {np.dtype(dtype)} of shape ({', '.join(dimensions)})"


def _value_faults(column: str, sequences: list[np.ndarray]) -> list[str]:
    for index, array in enumerate(sequences):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            timestep = int(np.argwhere(~np.isfinite(array))[0][0])
            return [f"{column}: a value of row {index} at timestep {timestep} is not finite"]
        if array.dtype.kind == "i" and array.size and array.min() < 0:
            return [f"{column}: values must not be negative, got {array.min()} in row {index}"]
    return []


def _truncate(rows: Rows, truncation: bool | str, side: str, max_length: int) -> Rows:
    if truncation in (False, "do_not_truncate"):
        return rows
    if truncation not in (True, "lossy", "preserve"):
        raise ValueError(f"truncation must be True, 'lossy', 'preserve' or False, got {truncation!r}")
    if side not in ("right", "left"):
        raise ValueError(f"truncation_side must be 'right' or 'left', got {side!r}")
    if max_length < 1:
        raise ValueError(f"max_length leaves no room for a single timestep or token (room for {max_length})")

    def chunks(array: np.ndarray) -> list[np.ndarray]:
        if side == "right":
            parts = [array[start : start + max_length] for start in range(0, len(array), max_length)]
        else:
            parts = [array[max(0, end - max_length) : end] for end in range(len(array), 0, -max_length)]
        return parts if truncation == "preserve" else parts[:1]

    return {column: [part for array in sequences for part in chunks(array)] for column, sequences in rows.items()}


def _pad(rows: Rows, padding: bool | str, max_length: int) -> Rows:
    if padding in (False, "do_not_pad") or not rows:
        return rows
    lengths = [len(array) for array in next(iter(rows.values()))]
    if padding in (True, "longest"):
        target = max(lengths)
    elif padding == "max_length":
        target = max(max_length, max(lengths))
    else:
        raise ValueError(f"padding must be True, 'longest', 'max_length' or False, got {padding!r}")

    def padded(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.repeat(array[:1], target - len(array), axis=0)])

    mask = [(np.arange(target) < length).astype(np.int64) for length in lengths]
    return {
        **{column: [padded(array) for array in sequences] for column, sequences in rows.items()},
        "attention_mask": mask,
    }


JatProcessor.register_for_auto_class()
