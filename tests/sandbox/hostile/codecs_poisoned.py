# Registers codecs and error handlers that rewrite what is encoded, and replaces those in the cache.
# kind: patches
# form: call, assert, stdio
import codecs
def handler(error): return ("3", error.end)
for name in ("strict", "replace", "surrogateescape", "backslashreplace", "surrogatepass"):
    codecs.register_error(name, handler)
codecs.register(lambda name: codecs.CodecInfo(lambda *a: (b"3", 1), lambda *a: ("3", 1)))
codecs.utf_8_encode = lambda *a: (b"3", 1)
def add(a, b): return "\ud800"
if __name__ == "__main__": print("\ud800")
