# Raises an exception whose __class__, __name__ and module claim to be the test's own StopIteration or AssertionError.
# kind: lies
# form: assert, check
class Meta(type):
    def __instancecheck__(cls, other): return True
    def __subclasscheck__(cls, other): return True
    __name__ = property(lambda cls: 1 / 0)
    mro = lambda cls: [cls, Exception, BaseException, object]
class Lie(Exception, metaclass=Meta):
    __class__ = property(lambda self: AssertionError)
def add(a, b): raise Lie("passed")
