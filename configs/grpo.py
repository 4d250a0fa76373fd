"""The default run: a small Qwen2 model warmed up by SFT, then trained by GRPO to write small Python functions."""

from jaxrl.config import Config


def get_config() -> Config:
    config = Config(name="grpo")
    return config
