# Gives a list that lies about its length and its items.
# kind: lies
# form: check
# status: wrong_answer|memory|timeout|runtime_error
class Liar(list):
    def __len__(self): return 10 ** 9
    def __iter__(self): return iter(range(10 ** 9))
    def __eq__(self, other): return True
def add(a, b): return Liar()
