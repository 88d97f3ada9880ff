"""The JAT model. Importing this package registers the type "jat" with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .agents import pretrained
from .configuration_jat import JatConfig
from .modeling_jat import JatContext, JatModelForCausalLM, JatOutput

AutoConfig.register("jat", JatConfig)
AutoModel.register(JatConfig, JatModelForCausalLM)
AutoModelForCausalLM.register(JatConfig, JatModelForCausalLM)

__all__ = ["JatConfig", "JatContext", "JatModelForCausalLM", "JatOutput", "pretrained"]
