"""Short programs that give sequences of bytes: the language of the KoLMogorov Test (arXiv 2503.13992), without a "
"sandbox.

language.py reads, runs and measures programs; generate.py draws them; compressors.py has what they are compared with.
"""
