"""One decoder for the Qwen, Llama and Mistral families, its sharding, and conversion from and to Hugging Face."""
